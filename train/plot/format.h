/* Numbers, durations and names in the short form that pictures use. */
#ifndef LOOM_TRAIN_PLOT_FORMAT_H
#define LOOM_TRAIN_PLOT_FORMAT_H

#include <stdbool.h>
#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Writes a value in the unit that fits `largest` (k, M, B, T; a power of ten if it is small), with enough decimals to
 * tell multiples of `step` apart: "0.5", "2000", "20k", "1.5M", "2e-4". `trim` drops trailing zeros. */
void loom_scaled_number(double value, double largest, double step, bool trim, char *text, size_t size);

/* Writes a single number with `digits` significant digits: "1.470", "23.4k", "2e-4"; a dash for NaN. */
void loom_number_label(double value, int digits, bool trim, char *text, size_t size);

/* "1,234,567" */
void loom_whole_number(double value, char *text, size_t size);

/* "12.3 s", "4 min 05 s", "3 h 20 min", "2 d 04 h" */
void loom_duration(double seconds, char *text, size_t size);

/* Shortens a name to `most` characters by leaving out its middle, because the end of a path says more than its
 * middle. */
void loom_shortened(const char *name, int most, char *text, size_t size);

#ifdef __cplusplus
}
#endif
#endif
