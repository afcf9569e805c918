#include "gptloom/optim.h"

#include "base/math.h"

/* The decay's progress, from lr (0) to min_lr (1), in step `step` of the `span` steps after warm-up. */
static double decayed(loom_schedule_kind kind, int64_t step, int64_t span) {
    const double done = span > 1 ? (double)step / (double)(span - 1) : 0;
    const double from = 0.8; /* wsd: the last fifth of the steps after warm-up decays */
    switch (kind) {
    case LOOM_SCHEDULE_COSINE: return 0.5 * (1 - loom_cos_of_turns(done / 2));
    case LOOM_SCHEDULE_LINEAR: return done;
    case LOOM_SCHEDULE_WSD: return done <= from ? 0 : (done - from) / (1 - from);
    case LOOM_SCHEDULE_CONSTANT: return 0;
    }
    return 0;
}

float loom_schedule_at(const loom_schedule *s, int64_t step) {
    if (step < s->warmup) return (float)((double)s->lr * (double)(step + 1) / (double)s->warmup);
    const int64_t span = s->steps - s->warmup;
    const int64_t after = step - s->warmup < span ? step - s->warmup : span - 1;
    return (float)((double)s->lr + ((double)s->min_lr - (double)s->lr) * decayed(s->kind, after, span));
}
