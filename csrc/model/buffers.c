#include "model/buffers.h"

#include "base/check.h"
#include "model/module.h"
#include "model/offload.h"

#include <stdlib.h>

#if defined(__SANITIZE_ADDRESS__)
#    include <sanitizer/asan_interface.h>
#endif

/* Lifetimes follow from the schedule: what a step writes lives until the last step that reads it before it is written
 * again. What is kept over all of a step lies at the region's start, one thing after another. The rest goes, the
 * largest first, to the lowest place that is free as long as it lives (cf. Pisarchyk and Lee, "Efficient Memory
 * Management for Deep Neural Net Inference", 2020). */

/* ------------------------------------------------------------------------------------------------------------ lifetimes */

enum { MOST_LIVES = 3 /* a node runs forward as often */, MOST_TOUCHED = 16 };

/* A value, a gradient, or the logits. */
typedef struct object {
    size_t bytes, place;
    bool lasts;                                     /* its place is its own */
    int lives, first[MOST_LIVES], last[MOST_LIVES]; /* steps */
    int seen;                                       /* by the object that looked for its neighbours last; -1 */
    int open;                                       /* the last step of the life that is being followed back; -1 */
} object;

typedef struct finder {
    const loom_tape *tape;
    const loom_tape_schedule *schedule;
    const loom_buffer_sizes *sizes;
    bool trains;
    object *object; /* [2 values + 1]: values, their gradients, logits */
    int n;
} finder;

static int gradient_of(const finder *f, loom_value v) {
    return f->tape->n_values + f->tape->value[v].gradient;
}

static int logits_of(const finder *f) {
    return 2 * f->tape->n_values;
}

/* What a step reads and writes. */
typedef struct touched {
    int read[MOST_TOUCHED], n_read, written[MOST_TOUCHED], n_written;
} touched;

static void reads(touched *t, int index) {
    LOOM_CHECK(t->n_read < MOST_TOUCHED);
    t->read[t->n_read++] = index;
}

static void writes(touched *t, int index) {
    LOOM_CHECK(t->n_written < MOST_TOUCHED);
    t->written[t->n_written++] = index;
}

/* The gradients of a node's inputs are written, or added to. */
static void touch_gradients(const finder *f, const loom_node *n, touched *t) {
    for (int k = 0; k < LOOM_NODE_INPUTS; k++) {
        if (n->in[k] < 0) continue;
        if (n->adds_in >> k & 1) reads(t, gradient_of(f, n->in[k]));
        writes(t, gradient_of(f, n->in[k]));
    }
}

static void touch_forward(const finder *f, int node, unsigned wanted, touched *t) {
    const loom_node *n = &f->tape->node[node];
    const unsigned read = loom_node_reads_outputs(n, wanted) & ~wanted;
    const unsigned written = loom_node_writes_outputs(f->tape, node, wanted);
    for (int k = 0; k < LOOM_NODE_INPUTS && loom_node_reads_inputs(n, wanted); k++)
        if (n->in[k] >= 0) reads(t, n->in[k]);
    for (int k = 0; k < LOOM_NODE_OUTPUTS; k++) {
        if (n->out[k] >= 0 && read >> k & 1) reads(t, n->out[k]);
        if (written >> k & 1) writes(t, n->out[k]);
    }
    if (n->module->backward) return;
    writes(t, logits_of(f));
    if (f->trains) touch_gradients(f, n, t);
}

static void touch_backward(const finder *f, int node, touched *t) {
    const loom_node *n = &f->tape->node[node];
    for (int k = 0; k < LOOM_NODE_INPUTS; k++)
        if (n->in[k] >= 0 && n->module->needs_in >> k & 1) reads(t, n->in[k]);
    for (int k = 0; k < LOOM_NODE_OUTPUTS; k++) {
        if (n->out[k] < 0) continue;
        const loom_tape_value *v = &f->tape->value[n->out[k]];
        if (loom_node_saves_outputs(n) >> k & 1) reads(t, n->out[k]);
        const bool of_input = n->in[0] >= 0 && gradient_of(f, n->in[0]) == gradient_of(f, n->out[k]);
        if (v->kind == LOOM_VALUE_ROWS && !of_input) reads(t, gradient_of(f, n->out[k]));
    }
    touch_gradients(f, n, t);
}

static touched touched_by(const finder *f, const loom_tape_step *step) {
    touched t = {.n_read = 0};
    if (step->kind == LOOM_STEP_FORWARD) touch_forward(f, step->index, step->wanted, &t);
    if (step->kind == LOOM_STEP_BACKWARD) touch_backward(f, step->index, &t);
    return t;
}

/* From the last step to the first. */
static void find_lives(finder *f) {
    for (int i = f->schedule->n - 1; i >= 0; i--) {
        const touched t = touched_by(f, &f->schedule->step[i]);
        for (int k = 0; k < t.n_written; k++) {
            object *o = &f->object[t.written[k]];
            bool adds = false;
            for (int j = 0; j < t.n_read; j++) adds = adds || t.read[j] == t.written[k];
            if (adds || (o->lives > 0 && o->first[o->lives - 1] == i)) continue; /* or it is there twice */
            LOOM_CHECK(o->lives < MOST_LIVES);
            o->first[o->lives] = i;
            o->last[o->lives++] = o->open < 0 ? i : o->open;
            o->open = -1;
        }
        for (int k = 0; k < t.n_read; k++) {
            object *o = &f->object[t.read[k]];
            if (o->open < 0) o->open = i;
        }
    }
    for (int i = 0; i < f->n; i++) LOOM_CHECK(f->object[i].open < 0); /* what is read was written */
}

/* --------------------------------------------------------------------------------------------------------------- places */

/* As an arena has it: aligned, with a gap. */
static size_t with_gap(size_t bytes) {
    return (bytes + LOOM_ARENA_ALIGNMENT - 1) / LOOM_ARENA_ALIGNMENT * LOOM_ARENA_ALIGNMENT + LOOM_ARENA_ALIGNMENT;
}

static bool is_kept(const finder *f, loom_value v) {
    const loom_tape_value *value = &f->tape->value[v];
    const bool for_backward = f->sizes->keep && f->sizes->keep[v] == LOOM_KEEP_ALWAYS;
    return (for_backward && f->tape->scope[value->scope].is_layer) || (f->sizes->caches && value->cached);
}

/* Of what is kept, one after the other; or with offloading, slots that segments take in turn. */
static void place_kept(finder *f, loom_buffers *b) {
    const loom_buffer_sizes *s = f->sizes;
    size_t used = 0, slot = 0;
    int segment = 0;
    for (int l = 0; l < f->tape->n_layers; l++) {
        if (l / s->segment != segment && s->offloads) {
            slot = used > slot ? used : slot;
            used = 0;
        }
        segment = l / s->segment;
        const loom_tape_scope *scope = &f->tape->scope[f->tape->first_layer + l];
        for (loom_value v = scope->first_value; v <= scope->last_value; v++) {
            if (f->tape->value[v].scope != f->tape->first_layer + l || !is_kept(f, v)) continue;
            f->object[v].lasts = true;
            f->object[v].place = used;
            used += f->object[v].bytes;
        }
    }
    b->slot = used > slot ? used : slot;
    b->kept = s->offloads ? LOOM_SLOTS * b->slot : used;
    for (loom_value v = 0; s->offloads && v < f->tape->n_values; v++)
        if (f->object[v].lasts)
            f->object[v].place += (size_t)((f->tape->value[v].scope - f->tape->first_layer) / s->segment % LOOM_SLOTS) *
                                  b->slot;
}

/* An object with its size, or with its place. */
typedef struct sized {
    size_t bytes;
    int object;
} sized;

static int larger_first(const void *a, const void *b) {
    const sized *x = a, *y = b;
    if (x->bytes != y->bytes) return x->bytes > y->bytes ? -1 : 1;
    return (x->object > y->object) - (x->object < y->object);
}

static bool live_together(const object *a, const object *b) {
    for (int i = 0; i < a->lives; i++)
        for (int j = 0; j < b->lives; j++)
            if (a->first[i] <= b->last[j] && b->first[j] <= a->last[i]) return true;
    return false;
}

/* Objects that have a place, listed by the stretches of so many steps in which they live: most live in few. */
enum { STRETCH = 32 };

typedef struct entry {
    int object, next;
} entry;

typedef struct living {
    int *first; /* [stretches] entries; -1 */
    entry *entry;
    int n;
    sized *found; /* [objects] */
} living;

static int by_place(const void *a, const void *b) {
    const sized *x = a, *y = b;
    return (x->bytes > y->bytes) - (x->bytes < y->bytes);
}

/* What lives when an object does, by its place; returns how many there are. */
static int neighbours(finder *f, living *l, int of) {
    const object *o = &f->object[of];
    int n = 0;
    for (int i = 0; i < o->lives; i++)
        for (int stretch = o->first[i] / STRETCH; stretch <= o->last[i] / STRETCH; stretch++)
            for (int e = l->first[stretch]; e >= 0; e = l->entry[e].next) {
                object *other = &f->object[l->entry[e].object];
                if (other->seen == of) continue;
                other->seen = of;
                if (live_together(o, other)) l->found[n++] = (sized){other->place, l->entry[e].object};
            }
    qsort(l->found, (size_t)n, sizeof *l->found, by_place);
    return n;
}

/* The lowest place from `from` on that is free as long as the object lives. */
static void place(finder *f, living *l, int of, size_t from) {
    object *o = &f->object[of];
    const int n = neighbours(f, l, of);
    o->place = from;
    for (int i = 0; i < n; i++) {
        const object *other = &f->object[l->found[i].object];
        if (o->place + o->bytes <= other->place) break;
        if (other->place + other->bytes > o->place) o->place = other->place + other->bytes;
    }
    for (int i = 0; i < o->lives; i++)
        for (int stretch = o->first[i] / STRETCH; stretch <= o->last[i] / STRETCH; stretch++) {
            l->entry[l->n] = (entry){of, l->first[stretch]};
            l->first[stretch] = l->n++;
        }
}

static size_t stretches_of(const object *o) {
    size_t n = 0;
    for (int i = 0; i < o->lives; i++) n += (size_t)(o->last[i] / STRETCH - o->first[i] / STRETCH) + 1;
    return n;
}

static bool place_passing(finder *f, loom_buffers *b) {
    const int stretches = f->schedule->n / STRETCH + 1;
    size_t entries = 1;
    for (int i = 0; i < f->n; i++) entries += stretches_of(&f->object[i]);
    living l = {.first = malloc((size_t)stretches * sizeof *l.first),
                .entry = malloc(entries * sizeof *l.entry),
                .found = malloc((size_t)f->n * sizeof *l.found)};
    sized *order = malloc((size_t)f->n * sizeof *order);
    const bool ok = l.first && l.entry && l.found && order;
    int n = 0;
    b->bytes = b->kept;
    for (int i = 0; ok && i < stretches; i++) l.first[i] = -1;
    for (int i = 0; ok && i < f->n; i++)
        if (!f->object[i].lasts && f->object[i].lives > 0) order[n++] = (sized){f->object[i].bytes, i};
    if (ok) qsort(order, (size_t)n, sizeof *order, larger_first);
    for (int i = 0; i < n; i++) {
        const object *o = &f->object[order[i].object];
        place(f, &l, order[i].object, b->kept);
        b->bytes = o->place + o->bytes > b->bytes ? o->place + o->bytes : b->bytes;
    }
    free(l.first);
    free(l.entry);
    free(l.found);
    free(order);
    return ok;
}

/* Whether all of it together can be counted. */
static bool can_be_counted(const loom_tape *t, const loom_buffer_sizes *sizes) {
    double bytes = (double)sizes->logits;
    for (int i = 0; i < t->n_values; i++)
        bytes += 2 * (double)sizes->rows * (double)t->value[i].columns * (double)sizeof(double);
    return bytes < 0x1p62;
}

bool loom_buffers_find(loom_buffers *b, const loom_tape *tape, const loom_tape_schedule *schedule,
                       const loom_buffer_sizes *sizes, loom_error *error) {
    const int values = tape->n_values;
    finder f = {.tape = tape, .schedule = schedule, .sizes = sizes, .trains = sizes->keep, .n = 2 * values + 1};
    *b = (loom_buffers){0};
    if (!can_be_counted(tape, sizes))
        return loom_fail(error, "--micro-batch: what %lld tokens are computed with fits into no memory; take fewer",
                         (long long)sizes->rows);
    b->value = calloc(3 * (size_t)values, sizeof *b->value);
    b->logits_size = sizes->logits;
    b->trains = sizes->keep;
    f.object = calloc((size_t)f.n, sizeof *f.object);
    bool ok = b->value && f.object;
    for (int i = 0; ok && i < f.n; i++) {
        const loom_tape_value *v = i < 2 * values ? &tape->value[i % values] : NULL;
        const size_t element = v && v->kind != LOOM_VALUE_ROWS ? sizes->statistics : sizes->storage;
        const size_t bytes = v ? (size_t)(sizes->rows * v->columns) * element : sizes->logits;
        f.object[i] = (object){.bytes = with_gap(bytes), .open = -1, .seen = -1};
        if (i < values) b->value[2 * values + i] = bytes;
    }
    if (ok) {
        find_lives(&f);
        place_kept(&f, b);
        ok = place_passing(&f, b);
    }
    if (ok) b->gradient = b->value + values, b->size = b->value + 2 * values;
    for (int i = 0; ok && i < values; i++) {
        b->value[i] = f.object[i].place;
        b->gradient[i] = f.object[gradient_of(&f, i)].place;
    }
    if (ok) b->logits = f.object[logits_of(&f)].place;
    free(f.object);
    if (!ok) loom_buffers_destroy(b);
    return ok || loom_fail(error, "no memory to lay out a model of %d layers", tape->n_layers);
}

#if defined(__SANITIZE_ADDRESS__)
static void let_touch(const loom_buffers *b, const loom_tape *t, int of, char *base) {
    const int n = t->n_values, v = of % n;
    const bool logits = of == 2 * n;
    const size_t place = logits ? b->logits : of < n ? b->value[v] : b->gradient[v];
    ASAN_UNPOISON_MEMORY_REGION(base + place, logits ? b->logits_size : b->size[v]);
}

void loom_buffers_fence(const loom_buffers *b, const loom_tape *tape, const loom_tape_step *step, char *base) {
    const finder f = {.tape = tape, .trains = b->trains};
    if (!step) {
        ASAN_UNPOISON_MEMORY_REGION(base, b->bytes - LOOM_ARENA_ALIGNMENT);
        return;
    }
    const touched t = touched_by(&f, step);
    ASAN_POISON_MEMORY_REGION(base, b->bytes - LOOM_ARENA_ALIGNMENT);
    for (int i = 0; i < t.n_read; i++) let_touch(b, tape, t.read[i], base);
    for (int i = 0; i < t.n_written; i++) let_touch(b, tape, t.written[i], base);
}
#else
void loom_buffers_fence(const loom_buffers *b, const loom_tape *tape, const loom_tape_step *step, char *base) {
    (void)b, (void)tape, (void)step, (void)base;
}
#endif

void loom_buffers_destroy(loom_buffers *b) {
    free(b->value);
    *b = (loom_buffers){0};
}
