#include "gptloom/model.h"

/* Why the master weights: an update is about a thousandth of its weight, and bf16 keeps 8 bits of it; rounded to
 * nearest most updates would be lost. Stochastic rounding keeps them in the mean, where the range is fp32's; fp16 lacks
 * that range too: updates below 2^-24 would be lost even so. */
static bool check_master(loom_dtype dtype, loom_error *error) {
    if (dtype == LOOM_BF16) return true;
    if (dtype == LOOM_F32)
        return loom_fail(error, "--master-weights: off goes with --dtype bf16; weights of fp32 are their own master");
    return loom_fail(error, "--master-weights: off goes with --dtype bf16; the small updates of fp16 weights would be "
                            "lost, as they are below its range");
}

static bool is_fp32_or_bf16(const char *flag, loom_dtype dtype, loom_error *error) {
    return dtype == LOOM_F32 || dtype == LOOM_BF16 ||
           loom_fail(error, "%s: is fp32 or bf16, not %s", flag, loom_dtype_name(dtype));
}

/* Why gradients of bf16 are for runs of bf16: a matrix product gives fp32 or what its inputs are stored in. */
bool loom_precision_check(const loom_precision_flags *flags, loom_error *error) {
    if (flags->dtype != LOOM_F32 && flags->dtype != LOOM_BF16 && flags->dtype != LOOM_F16)
        return loom_fail(error, "--dtype: runs are in fp32, bf16 or fp16, not in %s", loom_dtype_name(flags->dtype));
    if (!flags->master && !check_master(flags->dtype, error)) return false;
    if (!is_fp32_or_bf16("--optimizer-dtype", flags->optimizer, error) ||
        !is_fp32_or_bf16("--grad-dtype", flags->gradient, error))
        return false;
    return flags->gradient == LOOM_F32 || flags->dtype == LOOM_BF16 ||
           loom_fail(error,
                     "--grad-dtype: bf16 goes with --dtype bf16; a run in %s has the gradients of its weights in "
                     "fp32",
                     loom_dtype_name(flags->dtype));
}

bool loom_precision_of(const loom_device *device, const loom_precision_flags *flags, loom_precision *precision,
                       loom_error *error) {
    if (!loom_precision_check(flags, error)) return false;
    const loom_dtype widest = device->storage;
    if (widest == LOOM_F64)
        *precision = (loom_precision){widest, widest, widest, widest};
    else
        *precision = (loom_precision){.storage = flags->dtype,
                                      .master = flags->master ? widest : flags->dtype,
                                      .gradient = flags->gradient,
                                      .moment = flags->optimizer};
    return true;
}
