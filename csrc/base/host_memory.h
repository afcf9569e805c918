/* How much memory a process can still have. */
#ifndef LOOM_BASE_HOST_MEMORY_H
#define LOOM_BASE_HOST_MEMORY_H

#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Bytes that the machine has free and that this process's control group, as a container's, lets it have. */
size_t loom_memory_available(void);

/* What the control groups of `groups` (/proc/self/cgroup), mounted at `mounted` (/sys/fs/cgroup), leave of their limits:
 * the least of the process's own and those above it, of version 1 and 2. Cached pages of files count as free where they
 * can be dropped. SIZE_MAX: there is no limit. */
size_t loom_memory_left_by_groups(const char *groups, const char *mounted);

#ifdef __cplusplus
}
#endif
#endif
