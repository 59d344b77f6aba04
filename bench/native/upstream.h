/* A connection of the upstream, and the two protocols on it. */
#ifndef UPSTREAM_H
#define UPSTREAM_H
#include <sys/types.h>

#define IN 65536

struct h2;

struct peer {
    int fd, http2;
    char in[IN];                     /* of HTTP/1.1: the head; of HTTP/2: a frame that is not whole yet */
    size_t in_size;
    long body_left;
    int chunked, chunk_end;          /* how many bytes of the last chunk's end were seen */
    const struct answer *answer;
    long out_left;
    struct h2 *h2;
};

extern char date[30];                /* of this second, as HTTP writes it */

void fail(const char *what) __attribute__((noreturn));
void h2_begin(struct peer *p);
int h2_feed(struct peer *p, const unsigned char *data, size_t size);
int h2_flush(struct peer *p);
#endif
