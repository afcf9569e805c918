#include "optim/decay.h"

int64_t loom_decayed_ranges(const loom_layout *layout, int bucket, loom_element_range of, loom_ranges *decayed) {
    *decayed = (loom_ranges){0};
    for (int i = 0; i < layout->n_parameters; i++) {
        const loom_parameter *p = &layout->parameter[i];
        if (p->bucket != bucket || !p->decay) continue;
        const int64_t begin = p->offset - layout->bucket[bucket].offset, end = begin + p->padded_rows * p->columns;
        const int64_t first = begin > of.first ? begin : of.first, last = end < of.last ? end : of.last;
        if (first >= last) continue;
        if (decayed->n == LOOM_MOST_RANGES) return first;
        decayed->at[decayed->n++] = (loom_element_range){first - of.first, last - of.first};
    }
    return of.last;
}
