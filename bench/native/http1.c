/* HTTP/1.1: the same request again and again, and answers whose status and length are looked at. */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "conn.h"

#define HEAD 16384

struct talk {
    double asked;
    int awaited;                     /* answers */
    char head[HEAD + 1];
    size_t head_size;
    enum { IN_HEAD, IN_BODY, IN_CHUNK_SIZE, IN_CHUNK, AFTER_CHUNK, IN_TRAILERS } in;
    long left, received;             /* bytes of the body or chunk; bytes of the body so far */
    size_t line;                     /* of the trailers: how much of it came */
};

static char *requests;
static size_t requests_size;
static char *varying;                /* sixteen characters that are others in each request */

/* ``depth`` copies of the request in one piece. */
static void load(void) {
    size_t size;
    char *one = read_file(options.request, &size);
    requests_size = size * options.depth;
    if (!(requests = malloc(requests_size))) fail("out of memory");
    for (int i = 0; i < options.depth; i++) memcpy(requests + i * size, one, size);
    /* Shared by all connections: so small a request is with OpenSSL as soon as it is written. */
    if (options.depth == 1 && size < 8192) varying = memmem(requests, size, "XXXXXXXXXXXXXXXX", 16);
    free(one);
}

static void again(struct conn *c) {
    struct talk *t = c->talk;
    if (varying) {
        static unsigned long long number;
        char digits[17];
        snprintf(digits, sizeof digits, "%016llx", ++number * 0x9e3779b97f4a7c15);
        memcpy(varying, digits, 16);
    }
    t->asked = now();
    t->awaited = options.depth;
    t->in = IN_HEAD;
    t->head_size = 0;
    c->out = requests;
    c->out_size = requests_size;
    c->out_done = 0;
}

static void begin(struct conn *c) {
    if (!requests) load();
    if (!c->talk && !(c->talk = calloc(1, sizeof(struct talk)))) fail("out of memory");
    again(c);
}

static int finish(struct talk *t) {
    if (t->received != options.length) {
        meter_error(&meter, "a body of %ld bytes, not of %ld", t->received, options.length);
        return -1;
    }
    meter_answer(&meter, t->asked);
    t->awaited--;
    t->in = IN_HEAD;
    t->head_size = 0;
    return 0;
}

/* A whole head: how its body is framed. */
static int understand(struct talk *t) {
    char *length = strcasestr(t->head, "\r\ncontent-length:");
    int status = t->head_size > 12 ? atoi(t->head + 9) : 0;
    if (status == 100) {
        t->head_size = 0;
        return 0;
    }
    if (strncmp(t->head, "HTTP/1.1 ", 9) || status != options.status) {
        meter_error(&meter, "status %d", status);
        return -1;
    }
    t->received = 0;
    if (length) {
        t->left = atol(length + 17);
        t->in = IN_BODY;
        return t->left ? 0 : finish(t);
    }
    if (!strcasestr(t->head, "\r\ntransfer-encoding: chunked")) {
        meter_error(&meter, "an answer without a length");
        return -1;
    }
    t->left = 0;
    t->in = IN_CHUNK_SIZE;
    return 0;
}

/* One byte of a head or of chunked framing, or many of a body. How many were used; negative on an error. */
static long step(struct talk *t, const char *b, size_t n) {
    char c = *b;
    switch (t->in) {
        case IN_HEAD: {
            const char *end;
            size_t from = t->head_size > 3 ? t->head_size - 3 : 0, room = HEAD - t->head_size, take = n < room ? n : room;
            if (!take) {
                meter_error(&meter, "a head of more than %d bytes", HEAD);
                return -1;
            }
            memcpy(t->head + t->head_size, b, take);
            end = memmem(t->head + from, t->head_size + take - from, "\r\n\r\n", 4);
            if (end) take = end + 4 - t->head - t->head_size;
            t->head_size += take;
            t->head[t->head_size] = 0;
            return end && understand(t) ? -1 : (long)take;
        }
        case IN_BODY:
        case IN_CHUNK: {
            long take = (long)n < t->left ? (long)n : t->left;
            t->left -= take;
            t->received += take;
            if (!t->left) {
                if (t->in == IN_CHUNK) t->in = AFTER_CHUNK;
                else if (finish(t)) return -1;
            }
            return take;
        }
        case IN_CHUNK_SIZE:
            if (c == '\n') {
                t->in = t->left ? IN_CHUNK : IN_TRAILERS;
                t->line = 0;
            } else if (c != '\r') {
                const char *digits = "0123456789abcdef", *digit = strchr(digits, c | 32);
                if (!digit || t->left > 1L << 40) {
                    meter_error(&meter, "a chunk size that is none");
                    return -1;
                }
                t->left = t->left * 16 + (digit - digits);
            }
            return 1;
        case AFTER_CHUNK:
            if (c == '\n') t->in = IN_CHUNK_SIZE;
            return 1;
        case IN_TRAILERS:
            if (c == '\n') {
                if (!t->line) return finish(t) ? -1 : 1;
                t->line = 0;
            } else if (c != '\r') t->line++;
            return 1;
    }
    return -1;
}

static enum verdict feed(struct conn *c, const unsigned char *data, size_t size) {
    struct talk *t = c->talk;
    const char *b = (const char *)data, *end = b + size;
    while (b < end) {
        long used;
        if (!t->awaited) {
            meter_error(&meter, "an answer that nothing asked for");
            return FAILED;
        }
        if ((used = step(t, b, end - b)) < 0) return FAILED;
        b += used;
    }
    return t->awaited ? MORE : DONE;
}

static void sent(struct conn *c) { (void)c; }

const struct protocol http1 = {"\x08http/1.1", begin, feed, again, sent};
