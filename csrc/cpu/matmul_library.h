/* What a device "cpu" keeps of the library that multiplies its matrices. */
#ifndef LOOM_CPU_MATMUL_LIBRARY_H
#define LOOM_CPU_MATMUL_LIBRARY_H

#include "cpu/product.h"
#include "cpu/tuned.h"

struct loom_tuned_matmul {
    bool alone; /* the library threads each product itself */
    bool bf16;  /* the library multiplies bf16 as it is stored; else it is widened */
    loom_product_cache *products;
};

#endif
