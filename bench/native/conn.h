/* One client connection, TLS on a non-blocking socket, and what speaks on it. */
#ifndef CONN_H
#define CONN_H
#include <openssl/ssl.h>

#include "meter.h"

enum state { CLOSED, CONNECTING, TALKING, RESTING };

struct conn {
    int fd, events;                  /* what epoll is asked for */
    enum state state;
    SSL *ssl;
    const char *out;                 /* what is being sent: belongs to the protocol */
    size_t out_size, out_done;
    int served;                      /* something was received on it, once */
    void *talk;                      /* the protocol's own */
};

/* What a protocol does. An answer that is not as it must be is told to meter_error, and FAILED returned. */
enum verdict { MORE, DONE, FAILED };

struct protocol {
    const char *alpn;                                                /* as on the wire */
    void (*begin)(struct conn *);                                    /* a connection is there */
    enum verdict (*feed)(struct conn *, const unsigned char *, size_t); /* DONE: nothing is awaited any more */
    void (*again)(struct conn *);                                    /* ask anew, after DONE */
    void (*sent)(struct conn *);                                     /* all of out is sent */
};

struct options {
    const char *host, *request, *authority, *path, *fields;
    int port, depth, status, streams;
    long length;                     /* of the answer's body */
};

extern struct options options;
extern struct meter meter;
extern const struct protocol http1, grpc;

char *read_file(const char *path, size_t *size);
#endif
