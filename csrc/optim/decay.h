/* Which elements of a bucket weight decay applies to. */
#ifndef LOOM_OPTIM_DECAY_H
#define LOOM_OPTIM_DECAY_H

#include "gptloom/model.h"

/* The ranges of elements that decay, among the elements `of` of a bucket, counted from the first of these: as many as
 * one op takes (LOOM_MOST_RANGES). Returns the end of `of`, or where there are more ranges, the first element of the
 * next one. */
int64_t loom_decayed_ranges(const loom_layout *layout, int bucket, loom_element_range of, loom_ranges *decayed);

#endif
