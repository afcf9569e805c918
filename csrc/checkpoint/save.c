/* Saving. Alone, a rank writes every file in one pass. Several write the same bytes together:
 *
 *     rank 0     makes the temporary directory, the small files, and files of tensors without the tensors
 *     all        write what they have of the tensors in its place
 *     some       compute the checksums of these files, one each, now that they are whole
 *     rank 0     writes the manifest, renames the directory
 *
 * and go on from one line to the next only if all have done theirs. */
#include "gptloom/checkpoint.h"

#include "base/check.h"
#include "checkpoint/directory.h"
#include "checkpoint/documents.h"
#include "checkpoint/tensors.h"
#include "comm/collectives.h"
#include "gptloom/data.h"

#include <limits.h>
#include <stdlib.h>
#include <string.h>

enum { TENSOR_FILES = 2 };

/* A save as one rank sees it. */
typedef struct save {
    const loom_checkpoint_tensors *tensors;
    const loom_training_state *state;
    bool bytes;
    loom_comm *comm; /* NULL: alone */
    int n_files;
    struct tensor_file {
        const char *name;
        loom_tensor_sets sets;
        char checksum[33]; /* where several ranks write it */
    } file[TENSOR_FILES];
    loom_manifest manifest;     /* rank 0's */
    char checkpoints[PATH_MAX]; /* rank 0's */
    char temporary[PATH_MAX];   /* as rank 0 names it; "": there is none */
} save;

static bool leads(const save *s) {
    return !s->comm || s->comm->rank == 0;
}

/* Whether all ranks have come here with `ok`; if not, with the first one's error. */
static bool agreed(const save *s, bool ok, loom_error *error) {
    return s->comm ? loom_comm_all(s->comm, ok, error) : ok;
}

/* ------------------------------------------------------------------------------------------------------ by rank 0 */

static bool write_tuning(loom_manifest *manifest, loom_device *device, loom_error *error) {
    char *text = NULL;
    if (!device->tuning_get(device, &text, error)) return false;
    if (!text) return true;
    loom_writer *writer = loom_manifest_begin(manifest, LOOM_TUNING_FILE, error);
    const bool ok = writer && loom_writer_write(writer, text, strlen(text), error);
    free(text);
    return loom_manifest_end(manifest, LOOM_TUNING_FILE, writer, ok, error);
}

static bool write_tensors(save *s, loom_error *error) {
    const bool alone = !s->comm;
    bool ok = true;
    for (int i = 0; ok && i < s->n_files; i++)
        ok = loom_tensors_write(&s->manifest, s->file[i].name, s->tensors, &s->file[i].sets, alone, error);
    return ok;
}

/* Makes every file but the manifest; those of tensors are filled by all, if there are others. */
static bool begin(save *s, const char *run, loom_error *error) {
    const loom_gpt_config *config = s->tensors->config;
    if (!loom_join_path(s->checkpoints, sizeof s->checkpoints, run, "checkpoints", error)) return false;
    if (!loom_checkpoint_begin(s->checkpoints, s->state->step, s->temporary, sizeof s->temporary, error)) {
        *s->temporary = 0;
        return false;
    }
    const loom_text_ends ends = s->tensors->ends ? *s->tensors->ends : loom_text_ends_of(s->bytes, config->vocab_size);
    return loom_config_write(&s->manifest, config, &ends, s->tensors->dtype, error) &&
           (!s->bytes || loom_tokenizer_write(&s->manifest, config->block_size, error)) && write_tensors(s, error) &&
           loom_state_write(&s->manifest, s->state, error) && write_tuning(&s->manifest, s->tensors->device, error);
}

/* Completes the directory, makes it last through a power cut, and gives it its name. */
static bool publish(save *s, loom_error *error) {
    return loom_manifest_write(&s->manifest, error) && loom_sync_directory(s->temporary, error) &&
           loom_checkpoint_publish(s->checkpoints, s->state->step, s->temporary, error);
}

/* --------------------------------------------------------------------------------------------------------- by all */

/* Slices that do not cover every bucket would leave zeros in a checkpoint that looks whole. */
static bool check_slices(const save *s, loom_error *error) {
    enum { AT_ONCE = 64 };
    const loom_layout *layout = s->tensors->layout;
    for (int first = 0; first < layout->n_buckets; first += AT_ONCE) {
        const int n = layout->n_buckets - first < AT_ONCE ? layout->n_buckets - first : AT_ONCE;
        int64_t covered[AT_ONCE];
        for (int i = 0; i < n; i++) {
            const loom_checkpoint_slice *slice = &s->tensors->slice[first + i];
            LOOM_CHECK(slice->first >= 0 && slice->elements >= 0);
            LOOM_CHECK(slice->first + slice->elements <= layout->bucket[first + i].elements);
            covered[i] = slice->elements;
        }
        if (s->comm && !loom_comm_host_sum(s->comm, covered, n, error)) return false;
        for (int i = 0; i < n; i++) LOOM_CHECK(covered[i] == layout->bucket[first + i].elements);
    }
    return true;
}

/* Tells all ranks where rank 0 has put its files, and has each look for them. */
static bool find_directory(save *s, loom_error *error) {
    if (!loom_comm_host_broadcast(s->comm, s->temporary, sizeof s->temporary, 0, error)) return false;
    const bool seen = loom_is_directory(s->temporary) ||
                      loom_fail(error,
                                "%s: is not seen, though rank 0 has made it; the run's directory must be on a file "
                                "system that all ranks share",
                                s->temporary);
    return agreed(s, seen, error);
}

static bool write_parts(save *s, loom_error *error) {
    bool ok = true;
    for (int i = 0; ok && i < s->n_files; i++)
        ok = loom_tensors_write_part(s->temporary, s->file[i].name, s->tensors, &s->file[i].sets, error);
    return agreed(s, ok, error);
}

/* Each file of tensors is read again by one rank, the first by rank 0, and so on round. */
static bool compute_checksums(save *s, loom_error *error) {
    char path[PATH_MAX];
    uint64_t size;
    bool ok = true;
    for (int i = s->comm->rank; ok && i < s->n_files; i += s->comm->size)
        ok = loom_join_path(path, sizeof path, s->temporary, s->file[i].name, error) &&
             loom_file_checksum(path, &size, s->file[i].checksum, error);
    ok = agreed(s, ok, error);
    for (int i = 0; ok && i < s->n_files; i++) {
        char *checksum = s->file[i].checksum;
        ok = loom_comm_host_broadcast(s->comm, checksum, sizeof s->file[i].checksum, i % s->comm->size, error);
        if (ok && leads(s)) loom_manifest_set_checksum(&s->manifest, s->file[i].name, checksum);
    }
    return ok;
}

/* All that comes before the manifest. False on all ranks or on none. */
static bool fill(save *s, const char *run, loom_error *error) {
    return check_slices(s, error) && agreed(s, !leads(s) || begin(s, run, error), error) &&
           (!s->comm || (find_directory(s, error) && write_parts(s, error) && compute_checksums(s, error)));
}

bool loom_checkpoint_save(const char *run, const loom_checkpoint_tensors *tensors, const loom_training_state *state,
                          bool bytes, loom_comm *comm, loom_error *error) {
    LOOM_CHECK(state->step >= 0 && state->tokens >= 0);
    LOOM_CHECK(!bytes || tensors->config->vocab_size >= LOOM_BYTE_VOCABULARY);
    save s = {
        .tensors = tensors,
        .state = state,
        .bytes = bytes,
        .comm = comm && comm->size > 1 ? comm : NULL,
        .n_files = tensors->moments ? 2 : 1,
        .file = {{LOOM_WEIGHTS_FILE, loom_weight_sets(tensors)}, {LOOM_OPTIMIZER_FILE, loom_moment_sets(tensors)}}};
    s.manifest.directory = s.temporary;
    const bool filled = fill(&s, run, error), ok = filled && (!leads(&s) || publish(&s, error));
    if (leads(&s) && *s.temporary) loom_remove_tree(s.temporary, NULL); /* what failed, or what was replaced */
    if (filled) return agreed(&s, ok, error);
    if (s.comm) loom_comm_barrier(s.comm, NULL); /* so that nobody ends before rank 0 has cleaned up */
    return false;
}
