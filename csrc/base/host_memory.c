#include "base/host_memory.h"

#include <limits.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

/* Reads a file of lines and returns the number after `name`, or the number that a line begins with if `name` is "".
 * Returns SIZE_MAX if there is no such number, as in a limit that is "max". */
static size_t read_number(const char *path, const char *name) {
    FILE *file = fopen(path, "re");
    if (!file) return SIZE_MAX;
    char line[256];
    unsigned long long number = 0;
    const size_t length = strlen(name);
    bool found = false;
    while (!found && fgets(line, sizeof line, file))
        found = !strncmp(line, name, length) && sscanf(line + length, " %llu", &number) == 1;
    fclose(file);
    return found ? (size_t)number : SIZE_MAX;
}

/* ------------------------------------------------------------------------------------------------------ control groups */

/* The names of files and fields in one version of control groups. */
typedef struct group_files {
    const char *limit, *used, *droppable; /* droppable: a field of memory.stat */
} group_files;

static size_t read_in(const char *folder, const char *name, const char *line) {
    char path[PATH_MAX];
    const int length = snprintf(path, sizeof path, "%s/%s", folder, name);
    return length > 0 && (size_t)length < sizeof path ? read_number(path, line) : SIZE_MAX;
}

static size_t left_by(const char *folder, const group_files *files) {
    const size_t limit = read_in(folder, files->limit, ""), used = read_in(folder, files->used, "");
    const size_t droppable = read_in(folder, "memory.stat", files->droppable);
    if (limit == SIZE_MAX || used == SIZE_MAX) return SIZE_MAX;
    const size_t needed = droppable == SIZE_MAX ? used : droppable < used ? used - droppable : 0;
    return limit > needed ? limit - needed : 0;
}

/* The least that a group and all groups above it leave. A container may see its own group as the topmost one, and not
 * under the name that the group has outside. */
static size_t left_by_all(const char *mounted, const char *group, const group_files *files) {
    char folder[PATH_MAX];
    size_t least = SIZE_MAX;
    const int length = snprintf(folder, sizeof folder, "%s%s", mounted, group);
    if (length < 0 || (size_t)length >= sizeof folder) return SIZE_MAX;
    for (char *end = folder + length; end; end = strrchr(folder + strlen(mounted), '/')) {
        *end = 0;
        const size_t left = left_by(folder, files);
        least = left < least ? left : least;
    }
    return least;
}

/* A line of `groups` is "4:memory:/the/group" in version 1 and "0::/the/group" in version 2. */
size_t loom_memory_left_by_groups(const char *groups, const char *mounted) {
    static const group_files version_1 = {"memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file "};
    static const group_files version_2 = {"memory.max", "memory.current", "inactive_file "};
    char line[PATH_MAX], of_memory[PATH_MAX];
    size_t least = SIZE_MAX;
    snprintf(of_memory, sizeof of_memory, "%s/memory", mounted);
    FILE *file = fopen(groups, "re");
    while (file && fgets(line, sizeof line, file)) {
        line[strcspn(line, "\n")] = 0;
        char *controllers = strchr(line, ':'), *group = controllers ? strchr(controllers + 1, ':') : NULL;
        if (!group) continue;
        *group++ = 0;
        const bool second = !controllers[1];
        if (!second && !strstr(controllers, "memory")) continue;
        const size_t left = second ? left_by_all(mounted, group, &version_2)
                                   : left_by_all(of_memory, group, &version_1);
        least = left < least ? left : least;
    }
    if (file) fclose(file);
    return least;
}

size_t loom_memory_available(void) {
    const size_t kilobytes = read_number("/proc/meminfo", "MemAvailable:");
    const size_t free = kilobytes < SIZE_MAX / 1024 ? kilobytes * 1024 : SIZE_MAX;
    const size_t left = loom_memory_left_by_groups("/proc/self/cgroup", "/sys/fs/cgroup");
    return left < free ? left : free;
}
