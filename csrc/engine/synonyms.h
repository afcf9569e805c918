/* What other programs call things: the flags of nanoGPT, llm.c and Hugging Face's Trainer, and commands. */
#ifndef LOOM_ENGINE_SYNONYMS_H
#define LOOM_ENGINE_SYNONYMS_H

#include <stdbool.h>
#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

/* What to say of a name that is none of `names` (NULL-ended): which of them the same thing has, why there is no such
 * thing, or the one that is spelled most alike; each shown with `dashes` before it, "--" for flags. False where nothing
 * is known. Underscores in `word` count as dashes. */
bool loom_suggest_name(const char *word, const char *dashes, const char *const *names, char *text, size_t size);

#ifdef __cplusplus
}
#endif
#endif
