/* The shared memory of a block: its dynamic part and its arrays, each with red zones before and behind it. What no
 * thread has written is poison, 0xFF bytes: NaN as float, bfloat16 and half, -1 as an integer. */
#ifndef LOOM_EMULATION_SHARED_H
#define LOOM_EMULATION_SHARED_H

#include "simt.h"

#include <string>

namespace simt {

struct shared_memory {
    unsigned char *base = nullptr;
    size_t top = 0; /* bytes handed out, red zones included */
    size_t dynamic_bytes = 0;
    size_t static_bytes = 0; /* as CUDA counts them, without red zones */
    size_t limit = 0;        /* of both together; the caller sets it */
    int count = 0;
    struct {
        const array_site *site; /* null: the dynamic part */
        unsigned char *at;
        size_t bytes;
    } part[33];
};

void allocate_shared(shared_memory *shared);
void free_shared(shared_memory *shared);

/* A new block's: only the dynamic part, poisoned. */
void begin_shared(shared_memory *shared, size_t dynamic_bytes);

/* The array of a site, made and poisoned when the block first comes there; null if there is no room, which `problem`
 * then says. */
void *find_shared(shared_memory *shared, const array_site *site, char *problem, size_t capacity);

/* Whether all `bytes` at p lie in the block's shared memory. */
bool is_shared(const shared_memory *shared, const void *p, size_t bytes);

/* Whether AddressSanitizer, if there is one, forbids to read these bytes. */
bool is_out_of_bounds(const void *p, size_t bytes);

/* At the block's end: "" or what was written to outside of the arrays. */
std::string check_shared(const shared_memory *shared);

} // namespace simt
#endif
