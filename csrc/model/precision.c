#include "gptloom/model.h"

/* Why the master weights: an update is about a thousandth of its weight, and bf16 keeps 8 bits of it; rounded to nearest
 * most updates would be lost. Stochastic rounding keeps them in the mean, where the range is fp32's; fp16 lacks that
 * range too: updates below 2^-24 would be lost even so. */
bool loom_precision_check(loom_dtype dtype, bool master, loom_error *error) {
    switch (dtype) {
    case LOOM_F32:
        return master || loom_fail(error, "--master-weights: off goes with --dtype bf16; weights of fp32 are their own "
                                          "master");
    case LOOM_BF16: return true;
    case LOOM_F16:
        return master ||
               loom_fail(error, "--master-weights: off goes with --dtype bf16; the small updates of fp16 weights "
                                "would be lost, as they are below its range");
    case LOOM_F64:
    case LOOM_I32: break;
    }
    return loom_fail(error, "--dtype: runs are in fp32, bf16 or fp16, not in %s", loom_dtype_name(dtype));
}

bool loom_precision_of(const loom_device *device, loom_dtype dtype, bool master, loom_precision *precision,
                       loom_error *error) {
    if (!loom_precision_check(dtype, master, error)) return false;
    const loom_dtype widest = device->storage, storage = widest == LOOM_F64 ? widest : dtype;
    *precision = (loom_precision){.storage = storage, .master = master ? widest : storage, .gradient = widest};
    return true;
}
