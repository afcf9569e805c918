#include "planning.h"

#include "base/file.h"
#include "base/nearest.h"
#include "base/printable.h"

#include <stdio.h>
#include <string.h>

static bool take_checkpoint(loom_planning *p, const char *path, loom_checkpoint_info *from, loom_error *error) {
    loom_train_options *o = &p->options;
    if (o->model || o->n_layer || o->n_head || o->n_embd || o->block_size || o->vocab_size || o->activation >= 0 ||
        o->architecture >= 0)
        return loom_fail(error, "'%s': has a shape of its own, beside which no other can be given",
                         LOOM_BRIEF(path, 200));
    if (!loom_checkpoint_open(path, from, error)) return false;
    snprintf(p->name, sizeof p->name, "%s", from->directory);
    o->n_layer = from->config.n_layer;
    o->n_head = from->config.n_head;
    o->n_embd = from->config.n_embd;
    o->block_size = from->config.block_size;
    o->vocab_size = from->config.vocab_size;
    o->activation = (int)from->config.activation;
    o->architecture = (int)from->config.architecture;
    return true;
}

static bool take_name(loom_planning *p, const char *name, loom_error *error) {
    loom_gpt_named named;
    if (p->options.model)
        return loom_fail(error, "--model: does not go with '%s'; name one model", LOOM_BRIEF(name, 200));
    if (loom_gpt_config_by_name(name, &named, NULL)) {
        p->options.model = strdup(name);
        return p->options.model || loom_fail(error, "no memory for a name");
    }
    const char *names[128] = {NULL};
    const loom_gpt_named *catalogue = loom_gpt_catalogue();
    for (int i = 0; i < 127 && catalogue[i].name; i++) names[i] = catalogue[i].name;
    const char *nearest = loom_nearest_name(name, names);
    return loom_fail(error, "'%s': is neither a directory nor a named model; %s%s%s", LOOM_BRIEF(name, 200),
                     nearest ? "did you mean '" : "", nearest ? nearest : "'gptloom info' lists the models",
                     nearest ? "'?" : "");
}

/* What no data is there to tell. */
static bool take_vocabulary(loom_planning *p, loom_error *error) {
    loom_gpt_named named = {.config.vocab_size = LOOM_GPT2_VOCABULARY};
    if (p->options.model && !loom_gpt_config_by_name(p->options.model, &named, error)) return false;
    if (p->options.model && !p->name[0]) {
        snprintf(p->name, sizeof p->name, "%s", named.name);
        snprintf(p->note, sizeof p->note, "%s", named.note);
    }
    if (!p->options.vocab_size) p->options.vocab_size = named.config.vocab_size;
    return true;
}

bool loom_planning_settle(loom_planning *p, const char *argument, loom_checkpoint_info *from, loom_error *error) {
    loom_train_options *o = &p->options;
    if (argument &&
        !(loom_is_directory(argument) ? take_checkpoint(p, argument, from, error) : take_name(p, argument, error)))
        return false;
    if (!take_vocabulary(p, error) || !loom_train_options_resolve_shapes(o, error)) return false;
    p->config = (loom_gpt_config){o->n_layer,
                                  o->n_head,
                                  o->n_embd,
                                  o->block_size,
                                  o->vocab_size,
                                  (loom_gpt_activation)o->activation,
                                  (loom_gpt_architecture)o->architecture};
    if (!p->name[0]) snprintf(p->name, sizeof p->name, "a model");
    return true;
}

bool loom_planning_precision(const loom_planning *p, const loom_device *device, loom_precision *precision,
                             loom_error *error) {
    const loom_precision_flags asked = loom_train_options_precision(&p->options);
    return loom_precision_of(device, &asked, precision, error);
}

loom_gpt_setup loom_planning_setup(const loom_planning *p, const loom_precision *precision,
                                   const loom_recompute *recompute, int64_t B) {
    return (loom_gpt_setup){.purpose = LOOM_GPT_TRAIN,
                            .precision = precision,
                            .B = B,
                            .T = p->options.seq_len,
                            .recompute = *recompute,
                            .offload = p->options.offload == LOOM_OFFLOAD_ACTIVATIONS,
                            .logits_rows = p->options.logits_rows,
                            .generates = p->options.sample_every > 0,
                            .sharding = loom_train_options_sharding(&p->options)};
}

static void show_row(const char *name, size_t bytes, const char *rest) {
    printf("  %-28s %12.1f MiB%s\n", name, (double)bytes / 0x1p20, rest);
}

void loom_show_plan(const loom_plan *plan) {
    const size_t reserved = plan->device->reserved;
    char there[48];
    for (int i = 0; i < plan->arena.n_rows; i++) show_row(plan->arena.row[i].name, plan->arena.row[i].bytes, "");
    if (reserved) show_row("CUDA context and libraries", reserved, "");
    snprintf(there, sizeof there, " of %.1f MiB", (double)(plan->available + reserved) / 0x1p20);
    show_row("all", plan->arena.used + reserved, there);
    if (plan->host_bytes) show_row("offloaded activations", plan->host_bytes, " of host memory, beside these");
}
