/* Assertions for conditions that only a programming error can violate. They stay in release builds: none is in an inner
 * loop. */
#ifndef LOOM_BASE_CHECK_H
#define LOOM_BASE_CHECK_H

#ifdef __cplusplus
extern "C" {
#endif

void loom_check_failed(const char *condition, const char *file, int line) __attribute__((noreturn));

#ifdef __cplusplus
}
#endif

#define LOOM_CHECK(condition) ((condition) ? (void)0 : loom_check_failed(#condition, __FILE__, __LINE__))

#endif
