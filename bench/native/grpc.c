/* gRPC over HTTP/2: ``streams`` unary calls at a time on each connection, each with its status and message looked at. */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "conn.h"
#include "hpack.h"

#define OUT (1 << 18)
#define BLOCK 16384
#define MOST_STREAMS 128
#define WINDOW (1 << 20)             /* ours for a connection; given back by halves */

enum { DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION };
enum { END_STREAM = 1, ACK = 1, END_HEADERS = 4, PADDED = 8, PRIORITISED = 32 };

struct call {
    unsigned stream;
    double asked;
    long received;
    int http_status, grpc_status;    /* -1: not told yet */
};

struct talk {
    struct call calls[MOST_STREAMS];
    unsigned next_stream;
    int ready;                       /* the server's settings are there */
    long send_window, received;      /* of the connection */
    struct table ours, theirs;
    unsigned char in[BLOCK + 9];     /* a frame that is not whole yet */
    size_t in_size;
    unsigned char block[BLOCK];
    size_t block_size;
    unsigned long long random;
    char out[OUT];
};

static char *message;
static size_t message_size;

static void put(struct conn *c, const void *data, size_t size) {
    struct talk *t = c->talk;
    if (c->out_size + size > OUT) fail("the server does not read");
    memcpy(t->out + c->out_size, data, size);
    c->out_size += size;
}

static void put_frame(struct conn *c, int type, int flags, unsigned stream, const void *data, size_t size) {
    unsigned char head[9] = {size >> 16, size >> 8, size, type, flags, stream >> 24, stream >> 16, stream >> 8, stream};
    put(c, head, 9);
    put(c, data, size);
}

static unsigned number(const unsigned char *b) { return (unsigned)b[0] << 24 | b[1] << 16 | b[2] << 8 | b[3]; }

static void put_window(struct conn *c, unsigned by) {
    unsigned char update[4] = {by >> 24, by >> 16, by >> 8, by};
    put_frame(c, WINDOW_UPDATE, 0, 0, update, 4);
}

/* xorshift64: a request id and a deadline that no call had before. */
static unsigned long long random_bits(struct talk *t) {
    t->random ^= t->random << 13;
    t->random ^= t->random >> 7;
    return t->random ^= t->random << 17;
}

/* fixed: the same fields for each call. varying: what real clients send, a deadline that runs and an id of the request,
 * written as gRPC's C library does (deadlines into the table, unknown fields beside it). huffman: as Rust's and Go's do. */
static size_t fields(struct talk *t, unsigned char *out) {
    int varying = strcmp(options.fields, "fixed") != 0;
    enum how how = strcmp(options.fields, "huffman") ? INDEXED : INDEXED_HUFFMAN;
    char timeout[16] = "10S", id[40];
    size_t n = encode_begin(&t->ours, out);
    n += encode_field(&t->ours, out + n, ":scheme", "https", how);
    n += encode_field(&t->ours, out + n, ":method", "POST", how);
    n += encode_field(&t->ours, out + n, ":authority", options.authority, how);
    n += encode_field(&t->ours, out + n, ":path", options.path, how);
    n += encode_field(&t->ours, out + n, "te", "trailers", how);
    n += encode_field(&t->ours, out + n, "content-type", "application/grpc", how);
    n += encode_field(&t->ours, out + n, "user-agent", "grpc-python/1.66.0 grpc-c/43.0.0 (linux; chttp2)", how);
    n += encode_field(&t->ours, out + n, "grpc-accept-encoding", "identity, deflate, gzip", how);
    if (varying) {
        unsigned long long a = random_bits(t), b = random_bits(t);
        snprintf(timeout, sizeof timeout, "%llum", 90000 + a % 9999);
        snprintf(id, sizeof id, "%08llx-%04llx-4%03llx-%04llx-%012llx", a >> 32, a >> 16 & 0xffff, a & 0xfff, b >> 48, b & 0xffffffffffff);
        n += encode_field(&t->ours, out + n, "x-request-id", id, how == INDEXED ? PLAIN : how);
    }
    return n + encode_field(&t->ours, out + n, "grpc-timeout", timeout, how);
}

static void start_calls(struct conn *c) {
    struct talk *t = c->talk;
    for (int i = 0; t->ready && i < options.streams; i++) {
        struct call *call = &t->calls[i];
        unsigned char block[1024];
        if (call->stream || t->send_window < (long)message_size) continue;
        *call = (struct call){.stream = t->next_stream, .asked = now(), .http_status = -1, .grpc_status = -1};
        t->next_stream += 2;
        put_frame(c, HEADERS, END_HEADERS, call->stream, block, fields(t, block));
        put_frame(c, DATA, END_STREAM, call->stream, message, message_size);
        t->send_window -= message_size;
    }
}

static void begin(struct conn *c) {
    static unsigned long long seed = 88172645463325252;
    static const unsigned char no_push[6] = {0, 2, 0, 0, 0, 0};
    if (!message) message = read_file(options.request, &message_size);
    if (options.streams > MOST_STREAMS || message_size > BLOCK) fail("too many streams, or too large a message");
    if (!c->talk && !(c->talk = malloc(sizeof(struct talk)))) fail("out of memory");
    struct talk *t = c->talk;
    memset(t, 0, offsetof(struct talk, out));
    t->next_stream = 1;
    t->send_window = 65535;
    t->random = seed += 0x9e3779b97f4a7c15;
    table_init(&t->ours);
    table_init(&t->theirs);
    c->out = t->out;
    c->out_size = c->out_done = 0;
    put(c, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 24);
    put_frame(c, SETTINGS, 0, 0, no_push, 6);
    put_window(c, WINDOW - 65535);
}

static void seen(void *with, const char *name, const char *value) {
    struct call *call = with;
    if (!strcmp(name, ":status")) call->http_status = atoi(value);
    else if (!strcmp(name, "grpc-status")) call->grpc_status = atoi(value);
}

static int finish(struct call *call) {
    if (call->http_status != 200 || call->grpc_status || call->received != options.length) {
        meter_error(&meter, "a call: HTTP status %d, gRPC status %d, %ld bytes", call->http_status, call->grpc_status, call->received);
        return -1;
    }
    meter_answer(&meter, call->asked);
    call->stream = 0;
    return 0;
}

static struct call *find(struct talk *t, unsigned stream) {
    for (int i = 0; i < options.streams; i++)
        if (t->calls[i].stream == stream) return &t->calls[i];
    return NULL;
}

static int settings(struct conn *c, int flags, const unsigned char *b, size_t size) {
    struct talk *t = c->talk;
    if (flags & ACK) return 0;
    for (; size >= 6; b += 6, size -= 6)
        if (b[1] == 1 && !b[0]) table_limit(&t->ours, number(b + 2));
    put_frame(c, SETTINGS, ACK, 0, "", 0);
    t->ready = 1;
    return 0;
}

/* A whole frame. -1: told to meter_error. */
static int frame(struct conn *c, int type, int flags, unsigned stream, const unsigned char *b, size_t size) {
    struct talk *t = c->talk;
    struct call *call = stream ? find(t, stream) : NULL;
    size_t padding = 0, skip = 0, whole = size;
    if (stream && !call && type != WINDOW_UPDATE && type != PRIORITY) {
        meter_error(&meter, "a frame of type %d on a stream that is not open", type);
        return -1;
    }
    if ((type == DATA || type == HEADERS) && flags & PADDED && size) padding = b[0], skip = 1;
    if (type == HEADERS && flags & PRIORITISED) skip += 5;
    if (skip + padding > size) {
        meter_error(&meter, "padding beyond its frame");
        return -1;
    }
    b += skip;
    size -= skip + padding;
    switch (type) {
        case DATA:
            call->received += size;
            t->received += whole;
            if (t->received > WINDOW / 2) {
                put_window(c, t->received);
                t->received = 0;
            }
            return flags & END_STREAM ? finish(call) : 0;
        case HEADERS:
        case CONTINUATION:
            if (t->block_size + size > BLOCK) fail("a field block of more than %d bytes", BLOCK);
            memcpy(t->block + t->block_size, b, size);
            t->block_size += size;
            if (!(flags & END_HEADERS)) fail("a continued field block, which no server here needs");
            size = t->block_size;
            t->block_size = 0;
            if (decode(&t->theirs, t->block, size, seen, call)) {
                meter_error(&meter, "a field block that cannot be read");
                return -1;
            }
            return flags & END_STREAM ? finish(call) : 0;
        case SETTINGS:
            return settings(c, flags, b, size);
        case PING:
            if (!(flags & ACK)) put_frame(c, PING, ACK, 0, b, size);
            return 0;
        case WINDOW_UPDATE:
            if (!stream && size == 4) t->send_window += number(b) & 0x7fffffff;
            return 0;
        case RST_STREAM:
        case GOAWAY:
            meter_error(&meter, type == GOAWAY ? "GOAWAY %u" : "RST_STREAM %u", size >= 8 ? number(b + 4) : number(b));
            return -1;
        default:
            return 0;
    }
}

static enum verdict feed(struct conn *c, const unsigned char *data, size_t size) {
    struct talk *t = c->talk;
    while (size || t->in_size >= 9) {
        size_t length = t->in_size >= 3 ? (size_t)t->in[0] << 16 | t->in[1] << 8 | t->in[2] : 0;
        size_t needed = t->in_size >= 9 ? 9 + length : 9, take = needed - t->in_size;
        if (length > BLOCK) fail("a frame of more than %d bytes", BLOCK);
        if (take > size) take = size;
        memcpy(t->in + t->in_size, data, take);
        t->in_size += take;
        data += take;
        size -= take;
        if (t->in_size < needed) break;
        if (needed == 9 && ((size_t)t->in[0] << 16 | t->in[1] << 8 | t->in[2])) continue;
        t->in_size = 0;
        if (frame(c, t->in[3], t->in[4], number(t->in + 5) & 0x7fffffff, t->in + 9, needed - 9)) return FAILED;
    }
    start_calls(c);
    return MORE;
}

static void sent(struct conn *c) { c->out_size = c->out_done = 0; }

static void again(struct conn *c) { start_calls(c); }

const struct protocol grpc = {"\x02h2", begin, feed, again, sent};
