/* HPACK (RFC 7541), as much as a client needs: both tables of both directions, Huffman codes included. */
#ifndef HPACK_H
#define HPACK_H
#include <stddef.h>

#define TABLE 4096       /* bytes of a dynamic table, as in the RFC */
#define TEXT 96          /* what is kept of a name or value; no field that matters here is longer */
#define ENTRIES (TABLE / 32)

struct entry {
    char name[TEXT], value[TEXT];
    size_t size;
};

struct table {
    struct entry entries[ENTRIES];   /* a ring; the newest is at ``newest`` */
    int newest, count;
    size_t size, limit;
    int shrunk;                      /* the next block must say so (section 4.2) */
};

/* How a field is written: as gRPC's C library does, or as h2 (Rust) and Go do, which is ``HUFFMAN`` for all. */
enum how { INDEXED, PLAIN, INDEXED_HUFFMAN };

void table_init(struct table *table);
void table_limit(struct table *table, size_t limit);
size_t encode_begin(struct table *table, unsigned char *out);
size_t encode_field(struct table *table, unsigned char *out, const char *name, const char *value, enum how how);

/* Calls ``seen`` for each field. 0, or -1 for a block that cannot be read. */
int decode(struct table *table, const unsigned char *block, size_t size, void (*seen)(void *, const char *, const char *), void *with);
#endif
