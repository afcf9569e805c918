/* How much more memory a process can have. */
#ifndef LOOM_BASE_HOST_MEMORY_H
#define LOOM_BASE_HOST_MEMORY_H

#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

/* The bytes that are available both on the machine and under the limit of this process's control group (a container's,
 * for example). */
size_t loom_memory_available(void);

/* The bytes that control groups leave of their limits: the least over the process's own group and those above it, of
 * versions 1 and 2. `groups` is the file that lists them (/proc/self/cgroup) and `mounted` is where they are mounted
 * (/sys/fs/cgroup). Cached pages of files count as free where the kernel can drop them. SIZE_MAX means that there is no
 * limit. */
size_t loom_memory_left_by_groups(const char *groups, const char *mounted);

#ifdef __cplusplus
}
#endif
#endif
