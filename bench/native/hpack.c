#include "hpack.h"

#include <string.h>

#include "huffman.h"     /* made by bench/build.py: huffman_codes, huffman_lengths */

static const char *const statics[62][2] = {
    {"", ""}, {":authority", ""}, {":method", "GET"}, {":method", "POST"}, {":path", "/"}, {":path", "/index.html"},
    {":scheme", "http"}, {":scheme", "https"}, {":status", "200"}, {":status", "204"}, {":status", "206"},
    {":status", "304"}, {":status", "400"}, {":status", "404"}, {":status", "500"}, {"accept-charset", ""},
    {"accept-encoding", "gzip, deflate"}, {"accept-language", ""}, {"accept-ranges", ""}, {"accept", ""},
    {"access-control-allow-origin", ""}, {"age", ""}, {"allow", ""}, {"authorization", ""}, {"cache-control", ""},
    {"content-disposition", ""}, {"content-encoding", ""}, {"content-language", ""}, {"content-length", ""},
    {"content-location", ""}, {"content-range", ""}, {"content-type", ""}, {"cookie", ""}, {"date", ""}, {"etag", ""},
    {"expect", ""}, {"expires", ""}, {"from", ""}, {"host", ""}, {"if-match", ""}, {"if-modified-since", ""},
    {"if-none-match", ""}, {"if-range", ""}, {"if-unmodified-since", ""}, {"last-modified", ""}, {"link", ""},
    {"location", ""}, {"max-forwards", ""}, {"proxy-authenticate", ""}, {"proxy-authorization", ""}, {"range", ""},
    {"referer", ""}, {"refresh", ""}, {"retry-after", ""}, {"server", ""}, {"set-cookie", ""},
    {"strict-transport-security", ""}, {"transfer-encoding", ""}, {"user-agent", ""}, {"vary", ""}, {"via", ""},
    {"www-authenticate", ""}};

void table_init(struct table *t) {
    memset(t, 0, sizeof *t);
    t->limit = TABLE;
}

static void evict(struct table *t, size_t room) {
    while (t->count && t->size + room > t->limit) {
        t->size -= t->entries[(t->newest - t->count + 1 + ENTRIES) % ENTRIES].size;
        t->count--;
    }
}

void table_limit(struct table *t, size_t limit) {
    if (limit > TABLE) limit = TABLE;
    if (limit < t->limit) t->shrunk = 1;
    t->limit = limit;
    evict(t, 0);
}

static void insert(struct table *t, const char *name, size_t name_size, const char *value, size_t value_size) {
    size_t size = name_size + value_size + 32;
    evict(t, size);
    if (size > t->limit) return;
    t->newest = (t->newest + 1) % ENTRIES;
    struct entry *e = &t->entries[t->newest];
    strcpy(e->name, name);
    strcpy(e->value, value);
    e->size = size;
    t->size += size;
    t->count++;
}

static size_t integer(unsigned char *out, unsigned first, int bits, size_t value) {
    size_t most = (1u << bits) - 1, n = 1;
    if (value < most) {
        *out = first | value;
        return 1;
    }
    *out = first | most;
    for (value -= most; value > 127; value >>= 7) out[n++] = (value & 127) | 128;
    out[n++] = value;
    return n;
}

static size_t string(unsigned char *out, const char *text, int huffman) {
    size_t n = strlen(text), bits = 0, size;
    if (huffman) {
        for (size_t i = 0; i < n; i++) bits += huffman_lengths[(unsigned char)text[i]];
        huffman = (bits + 7) / 8 < n;
    }
    if (!huffman) {
        size = integer(out, 0, 7, n);
        memcpy(out + size, text, n);
        return size + n;
    }
    size = integer(out, 0x80, 7, (bits + 7) / 8);
    unsigned long long pending = 0;
    int held = 0;
    for (size_t i = 0; i < n; i++) {
        int length = huffman_lengths[(unsigned char)text[i]];
        pending = pending << length | huffman_codes[(unsigned char)text[i]];
        for (held += length; held >= 8; held -= 8) out[size++] = pending >> (held - 8);
    }
    if (held) out[size++] = pending << (8 - held) | 0xff >> held;
    return size;
}

size_t encode_begin(struct table *t, unsigned char *out) {
    if (!t->shrunk) return 0;
    t->shrunk = 0;
    return integer(out, 0x20, 5, t->limit);
}

size_t encode_field(struct table *t, unsigned char *out, const char *name, const char *value, enum how how) {
    size_t at = 0, n;
    for (size_t i = 1; i < 62; i++)
        if (!strcmp(statics[i][0], name)) {
            if (!strcmp(statics[i][1], value)) return integer(out, 0x80, 7, i);
            if (!at) at = i;
        }
    for (int i = 0; how != PLAIN && i < t->count; i++) {
        const struct entry *e = &t->entries[(t->newest - i + ENTRIES) % ENTRIES];
        if (!strcmp(e->name, name)) {
            if (!strcmp(e->value, value)) return integer(out, 0x80, 7, 62 + i);
            if (!at) at = 62 + i;
        }
    }
    int huffman = how == INDEXED_HUFFMAN;
    n = how == PLAIN ? integer(out, 0x00, 4, at) : integer(out, 0x40, 6, at);
    if (!at) n += string(out + n, name, huffman);
    n += string(out + n, value, huffman);
    if (how != PLAIN) insert(t, name, strlen(name), value, strlen(value));
    return n;
}

struct reader {
    const unsigned char *at, *end;
    int bad;
};

static size_t read_integer(struct reader *r, int bits) {
    size_t most = (1u << bits) - 1, value = *r->at++ & most;
    if (value < most) return value;
    for (int shift = 0; r->at < r->end && shift < 28; shift += 7) {
        value += (size_t)(*r->at & 127) << shift;
        if (!(*r->at++ & 128)) return value;
    }
    r->bad = 1;
    return 0;
}

/* One symbol after the other, bit by bit: answers have few fields, and most of them come from a table. */
static void read_string(struct reader *r, char *text, size_t *size) {
    *text = 0;
    *size = 0;
    if (r->at >= r->end) {
        r->bad = 1;
        return;
    }
    int huffman = *r->at & 128;
    size_t n = read_integer(r, 7);
    if (r->bad || n > (size_t)(r->end - r->at)) {
        r->bad = 1;
        return;
    }
    if (!huffman) {
        *size = n;
        memcpy(text, r->at, n < TEXT ? n : TEXT - 1);
        text[n < TEXT ? n : TEXT - 1] = 0;
    } else {
        unsigned code = 0;
        int length = 0;
        for (size_t i = 0; i < n * 8; i++) {
            code = code << 1 | (r->at[i / 8] >> (7 - i % 8) & 1);
            length++;
            for (int symbol = 0; length >= 5 && symbol < 256; symbol++)
                if (huffman_lengths[symbol] == length && huffman_codes[symbol] == code) {
                    if (*size < TEXT - 1) text[*size] = symbol;
                    ++*size;
                    code = length = 0;
                }
        }
        text[*size < TEXT ? *size : TEXT - 1] = 0;
    }
    r->at += n;
}

static int look_up(const struct table *t, size_t index, const char **name, const char **value) {
    if (!index || index >= 62 + (size_t)t->count) return -1;
    const struct entry *e = &t->entries[(t->newest - (int)(index - 62) + ENTRIES) % ENTRIES];
    *name = index < 62 ? statics[index][0] : e->name;
    *value = index < 62 ? statics[index][1] : e->value;
    return 0;
}

int decode(struct table *t, const unsigned char *block, size_t size, void (*seen)(void *, const char *, const char *), void *with) {
    struct reader r = {block, block + size, 0};
    while (r.at < r.end && !r.bad) {
        unsigned first = *r.at;
        const char *name, *value;
        if (first & 0x80) {
            if (look_up(t, read_integer(&r, 7), &name, &value)) return -1;
            seen(with, name, value);
        } else if ((first & 0xe0) == 0x20) {
            table_limit(t, read_integer(&r, 5));
        } else {
            int indexed = (first & 0xc0) == 0x40;
            size_t at = read_integer(&r, indexed ? 6 : 4), name_size, value_size;
            char name_text[TEXT], value_text[TEXT];
            if (at) {
                if (look_up(t, at, &name, &value)) return -1;
                strcpy(name_text, name);
                name_size = strlen(name);
            } else {
                read_string(&r, name_text, &name_size);
            }
            read_string(&r, value_text, &value_size);
            if (r.bad) return -1;
            seen(with, name_text, value_text);
            if (indexed) insert(t, name_text, name_size, value_text, value_size);
        }
    }
    return r.bad ? -1 : 0;
}
