#include "cpu/processors.h"

#include <omp.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ------------------------------------------------------------------------------------------------ what the system says */

/* Reads a file with a list such as "0-3,8,10-11". Returns false if the list is missing or empty. */
static bool read_list(const char *path, cpu_set_t *set) {
    FILE *file = fopen(path, "re");
    if (!file) return false;
    int first, last, end = ',';
    CPU_ZERO(set);
    while (end == ',' && fscanf(file, "%d", &first) == 1 && first >= 0) {
        last = first;
        end = fgetc(file);
        if (end == '-') end = fscanf(file, "%d", &last) == 1 ? fgetc(file) : EOF;
        for (int p = first; p <= last && p < CPU_SETSIZE; p++) CPU_SET(p, set);
    }
    fclose(file);
    return CPU_COUNT(set) > 0;
}

/* Reads the list of the control group `group` ("/a/b"), or of the nearest group above it that has one: inside a
 * container the group's own directory may not be visible. */
static bool read_group(const char *mount, const char *group, const char *name, cpu_set_t *set) {
    size_t length = strlen(group);
    for (;;) {
        char path[4608];
        snprintf(path, sizeof path, "%s%.*s/%s", mount, (int)length, group, name);
        if (read_list(path, set)) return true;
        if (length == 0) return false;
        do length--;
        while (length && group[length] != '/');
    }
}

/* The processors of this process's control group (a container's or a job's). */
static bool ask_group(cpu_set_t *set) {
    FILE *file = fopen("/proc/self/cgroup", "re");
    if (!file) return false;
    char line[4096]; /* "NUMBER:CONTROLLERS:GROUP"; in version 2 "0::GROUP" */
    bool found = false;
    while (!found && fgets(line, sizeof line, file)) {
        line[strcspn(line, "\n")] = 0;
        char *const controllers = strchr(line, ':'), *const group = controllers ? strchr(controllers + 1, ':') : NULL;
        if (!group) continue;
        *group = 0;
        if (controllers + 1 == group)
            found = read_group("/sys/fs/cgroup", group + 1, "cpuset.cpus.effective", set);
        else if (strstr(controllers, "cpuset"))
            found = read_group("/sys/fs/cgroup/cpuset", group + 1, "cpuset.cpus", set);
    }
    fclose(file);
    return found;
}

static cpu_set_t allowed, machine;

/* Called once, before any thread is pinned. */
static void ask(void) {
    CPU_ZERO(&allowed);
    if (sched_getaffinity(0, sizeof allowed, &allowed) != 0 || CPU_COUNT(&allowed) == 0) CPU_SET(0, &allowed);
    if (!ask_group(&machine) && !read_list("/sys/devices/system/cpu/online", &machine)) machine = allowed;
}

/* ------------------------------------------------------------------------------------------------------------- sharing */

/* Returns the `index`-th processor of a set. */
static int processor_at(const cpu_set_t *set, int index) {
    int processor = 0;
    while (!CPU_ISSET(processor, set) || index-- > 0) processor++;
    return processor;
}

static bool is_bound(const cpu_set_t *to, const cpu_set_t *of) {
    cpu_set_t both;
    CPU_AND(&both, to, of);
    return !CPU_EQUAL(&both, of);
}

loom_processors loom_processors_share(const cpu_set_t *may, const cpu_set_t *of, int local_rank, int local_size) {
    const int count = CPU_COUNT(may), part = local_size > 1 ? CPU_COUNT(of) / local_size : count;
    const bool bound = is_bound(may, of);
    if (local_size <= 1 || (bound && count <= part)) return (loom_processors){*may, count, true};
    if (bound || part == 0) return (loom_processors){*may, part ? part : 1, false};
    loom_processors mine = {.threads = part, .own = true};
    for (int i = 0; i < part; i++) CPU_SET(processor_at(may, local_rank * part + i), &mine.set);
    return mine;
}

loom_processors loom_processors_of(int local_rank, int local_size) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, ask);
    return loom_processors_share(&allowed, &machine, local_rank, local_size);
}

/* ------------------------------------------------------------------------------------------------------------- pinning */

bool loom_processors_pins(const loom_processors *processors, int threads) {
    return processors->own && threads == CPU_COUNT(&processors->set) && CPU_COUNT(&allowed) > 1;
}

void loom_processors_pin(const loom_processors *processors, int threads) {
#pragma omp parallel num_threads(threads)
    {
        cpu_set_t one;
        CPU_ZERO(&one);
        CPU_SET(processor_at(&processors->set, omp_get_thread_num()), &one);
        pthread_setaffinity_np(pthread_self(), sizeof one, &one);
    }
}

void loom_processors_unpin(void) {
    pthread_setaffinity_np(pthread_self(), sizeof allowed, &allowed);
}
