#include "comm/backend.h"

#include <stdio.h>
#include <stdlib.h>

bool loom_comm_failed(loom_comm *comm, const loom_error *why, loom_error *error) {
    loom_comm_base *base = loom_comm_base_of(comm);
    if (!base->failed) base->failure = *why;
    base->failed = true;
    return loom_fail(error, "%s", base->failure.message);
}

const char *loom_comm_describe(char *text, size_t size, const loom_comm_operation *o) {
    static const char *const names[] = {
        [LOOM_ALL_REDUCE] = "all_reduce", [LOOM_ALL_GATHER] = "all_gather", [LOOM_REDUCE_SCATTER] = "reduce_scatter",
        [LOOM_BROADCAST] = "broadcast",   [LOOM_EXCHANGE] = "exchange",     [LOOM_BARRIER] = "barrier",
        [LOOM_FINAL_BARRIER] = "close"};
    if (o->kind == LOOM_BARRIER)
        snprintf(text, size, "%s %lld", names[o->kind], (long long)o->number);
    else
        snprintf(text, size, "%s %lld (%lld of %s)", names[o->kind], (long long)o->number,
                 (long long)(o->count > o->send_count ? o->count : o->send_count), loom_dtype_name(o->dtype));
    return text;
}

void loom_comm_name_ranks(char *text, size_t size, const bool *marked, int ranks) {
    enum { NAMED = 8 }; /* at most */
    int count = 0, named = 0;
    for (int r = 0; r < ranks; r++) count += marked[r];
    int at = snprintf(text, size, count == 1 ? "rank" : "ranks");
    for (int r = 0; r < ranks && named < NAMED; r++) {
        if (!marked[r]) continue;
        named++;
        const char *before = named == 1 ? " " : named == count ? " and " : ", ";
        at += snprintf(text + at, size - (size_t)at, "%s%d", before, r);
    }
    if (named < count) snprintf(text + at, size - (size_t)at, " and %d more", count - named);
}

int loom_comm_rows_in(const loom_comm *comm, const loom_comm_operation *o) {
    switch (o->kind) {
    case LOOM_ALL_REDUCE:
    case LOOM_ALL_GATHER: return 1;
    case LOOM_REDUCE_SCATTER: return comm->size;
    case LOOM_BROADCAST: return o->from == comm->rank;
    case LOOM_EXCHANGE: return o->to >= 0;
    case LOOM_BARRIER:
    case LOOM_FINAL_BARRIER: break;
    }
    return 0;
}

int loom_comm_rows_out(const loom_comm *comm, const loom_comm_operation *o) {
    switch (o->kind) {
    case LOOM_ALL_REDUCE:
    case LOOM_REDUCE_SCATTER: return 1;
    case LOOM_ALL_GATHER: return comm->size;
    case LOOM_BROADCAST: return o->from != comm->rank;
    case LOOM_EXCHANGE: return o->from >= 0;
    case LOOM_BARRIER:
    case LOOM_FINAL_BARRIER: break;
    }
    return 0;
}

void loom_comm_name_missing(char *text, size_t size, const bool *there, int ranks) {
    bool *missing = calloc((size_t)ranks, sizeof *missing);
    for (int r = 0; missing && r < ranks; r++) missing[r] = !there[r];
    snprintf(text, size, "other ranks");
    if (missing) loom_comm_name_ranks(text, size, missing, ranks);
    free(missing);
}
