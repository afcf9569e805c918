/* "Did you mean": the nearest of several names. */
#ifndef LOOM_BASE_NEAREST_H
#define LOOM_BASE_NEAREST_H

#ifdef __cplusplus
extern "C" {
#endif

/* Optimal-string-alignment distance: insertions, deletions, replacements and swaps of neighbours. */
int loom_name_distance(const char *a, const char *b);

/* Returns the nearest name of a NULL-terminated list, or NULL if no name is near (more than a third of the word is
 * wrong). */
const char *loom_nearest_name(const char *word, const char *const *names);

#ifdef __cplusplus
}
#endif
#endif
