/* What a device "cpu" keeps of the library that multiplies its matrices. */
#ifndef LOOM_CPU_MATMUL_LIBRARY_H
#define LOOM_CPU_MATMUL_LIBRARY_H

#include "cpu/product.h"
#include "cpu/tuned.h"

struct loom_tuned_matmul {
    bool fp32, bf16;       /* which it multiplies; the table does the rest */
    bool library_threaded; /* the library threads each product itself */
    loom_product_cache *products;
};

#endif
