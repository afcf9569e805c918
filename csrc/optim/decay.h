/* Which elements of a bucket weight decay applies to. */
#ifndef LOOM_OPTIM_DECAY_H
#define LOOM_OPTIM_DECAY_H

#include "gptloom/model.h"

/* The decayed ranges among elements `of` of a bucket, counted from the first of these, as many as an op is told of. Returns
 * the element of the bucket up to which these are all there are: the end, or where the next one begins. */
int64_t loom_decayed_ranges(const loom_layout *layout, int bucket, loom_element_range of, loom_ranges *decayed);

#endif
