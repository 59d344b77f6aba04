/* gRPC over h2c: every call is answered with the same message of 200 bytes, and with the fields of Qdrant's tonic, written
 * as its h2 does: Huffman-coded, and once into the table of each connection. Those that come need not be read. */
#define _GNU_SOURCE
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "hpack.h"
#include "upstream.h"

#define BLOCK 128
#define OUT (1 << 19)
#define WAITING 4096
#define MESSAGE 205                  /* five bytes of gRPC's prefix, and 200 */
#define ROOM (1 << 20)               /* what a client may send before it is given more, on a connection */

enum { DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION };
enum { END_STREAM = 1, ACK = 1, END_HEADERS = 4 };

struct h2 {
    int greeted;                     /* the client's preface was read */
    long window, received;           /* of the connection */
    unsigned waiting[WAITING];       /* calls to be answered when there is window again */
    int n_waiting;
    struct table table;
    char date[30];                   /* that the blocks tell */
    int settled;                     /* whether all their fields were in the table */
    unsigned char head[BLOCK], tail[BLOCK];
    size_t head_size, tail_size;
    size_t out_size, out_done;
    unsigned char out[OUT];
};

#define POINT(size, entry, value, string, text) "\x0a" size "\x0a\x02\x08\x07\x12" entry "\x0a\x05title\x12" value "\x22" string text "\x1d\0\0\0\x3f\x28\x03"
#define SHORT POINT("\x1c", "\x0f", "\x06", "\x04", "text")

/* A SearchResponse: five points with id, payload, score and version, a longer one, and the time. */
static const unsigned char message[MESSAGE + 1] = "\0\0\0\0\xc8" SHORT SHORT SHORT SHORT SHORT
    POINT("\x27", "\x1a", "\x11", "\x0f", "text of a point") "\x11\xfc\xa9\xf1\xd2\x4d\x62\x50\x3f";

static int put_frame(struct h2 *h, int type, int flags, unsigned stream, const void *data, size_t size) {
    unsigned char start[9] = {size >> 16, size >> 8, size, type, flags, stream >> 24, stream >> 16, stream >> 8, stream};
    if (h->out_size + 9 + size > OUT) return -1;
    memcpy(h->out + h->out_size, start, 9);
    memcpy(h->out + h->out_size + 9, data, size);
    h->out_size += 9 + size;
    return 0;
}

static unsigned number(const unsigned char *b) { return (unsigned)b[0] << 24 | b[1] << 16 | b[2] << 8 | b[3]; }

void h2_begin(struct peer *p) {
    static const unsigned char room[4] = {0, ROOM >> 16, ROOM >> 8 & 255, ROOM & 255};
    if (!(p->h2 = calloc(1, sizeof *p->h2))) fail("memory");
    p->h2->window = 65535;
    table_init(&p->h2->table);
    put_frame(p->h2, SETTINGS, 0, 0, "", 0);
    put_frame(p->h2, WINDOW_UPDATE, 0, 0, room, 4);
}

int h2_flush(struct peer *p) {
    struct h2 *h = p->h2;
    while (h->out_done < h->out_size) {
        ssize_t n = send(p->fd, h->out + h->out_done, h->out_size - h->out_done, MSG_NOSIGNAL);
        if (n < 0) return errno == EAGAIN ? 0 : -1;
        h->out_done += n;
    }
    h->out_size = h->out_done = 0;
    return 0;
}

/* After a change into the table, then out of it: a byte for each field, which can be sent again. */
static void write_blocks(struct h2 *h) {
    if (h->settled && !strcmp(h->date, date)) return;
    strcpy(h->date, date);
    h->head_size = encode_begin(&h->table, h->head);
    h->head_size += encode_field(&h->table, h->head + h->head_size, ":status", "200", INDEXED_HUFFMAN);
    h->head_size += encode_field(&h->table, h->head + h->head_size, "content-type", "application/grpc", INDEXED_HUFFMAN);
    h->head_size += encode_field(&h->table, h->head + h->head_size, "date", date, INDEXED_HUFFMAN);
    h->tail_size = encode_field(&h->table, h->tail, "grpc-status", "0", INDEXED_HUFFMAN);
    h->settled = h->head_size == 3 && h->tail_size == 1;
}

static int answer(struct h2 *h, unsigned stream) {
    if (h->window < MESSAGE) {
        if (h->n_waiting == WAITING) return -1;
        h->waiting[h->n_waiting++] = stream;
        return 0;
    }
    h->window -= MESSAGE;
    write_blocks(h);
    return put_frame(h, HEADERS, END_HEADERS, stream, h->head, h->head_size) || put_frame(h, DATA, 0, stream, message, MESSAGE) ||
           put_frame(h, HEADERS, END_HEADERS | END_STREAM, stream, h->tail, h->tail_size);
}

static int widen(struct h2 *h, unsigned by) {
    int n = h->n_waiting;
    h->window += by;
    h->n_waiting = 0;
    for (int i = 0; i < n; i++)
        if (answer(h, h->waiting[i])) return -1;
    return 0;
}

static int frame(struct h2 *h, int type, int flags, unsigned stream, const unsigned char *b, size_t size) {
    switch (type) {
        case DATA:
            h->received += size;
            if (h->received > ROOM / 2) {
                unsigned char update[4] = {h->received >> 24, h->received >> 16, h->received >> 8, h->received};
                if (put_frame(h, WINDOW_UPDATE, 0, 0, update, 4)) return -1;
                h->received = 0;
            }
            return flags & END_STREAM ? answer(h, stream) : 0;
        case HEADERS:
            return flags & END_STREAM ? answer(h, stream) : 0;
        case SETTINGS:
            if (flags & ACK) return 0;
            for (; size >= 6; b += 6, size -= 6)
                if (b[1] == 1) {  /* SETTINGS_HEADER_TABLE_SIZE */
                    table_limit(&h->table, number(b + 2));
                    h->settled = 0;
                }
            return put_frame(h, SETTINGS, ACK, 0, "", 0);
        case PING:
            return flags & ACK ? 0 : put_frame(h, PING, ACK, 0, b, size);
        case WINDOW_UPDATE:
            return stream || size != 4 ? 0 : widen(h, number(b) & 0x7fffffff);
        case GOAWAY:
            return 0;
        default:
            return 0;
    }
}

int h2_feed(struct peer *p, const unsigned char *data, size_t size) {
    struct h2 *h = p->h2;
    unsigned char *in = (unsigned char *)p->in;
    while (size) {
        size_t length = (size_t)in[0] << 16 | in[1] << 8 | in[2], needed = !h->greeted ? 24 : p->in_size < 9 ? 9 : 9 + length;
        if (needed > IN) return -1;
        size_t take = needed - p->in_size < size ? needed - p->in_size : size;
        memcpy(in + p->in_size, data, take);
        p->in_size += take;
        data += take;
        size -= take;
        if (p->in_size < needed) break;
        if (!h->greeted) {
            h->greeted = 1;
        } else {
            length = (size_t)in[0] << 16 | in[1] << 8 | in[2];
            if (p->in_size < 9 + length) continue;
            if (frame(h, in[3], in[4], number(in + 5) & 0x7fffffff, in + 9, length)) return -1;
        }
        p->in_size = 0;
    }
    return h2_flush(p);
}
