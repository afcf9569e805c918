/* The picture of training runs: one self-contained SVG. */
#ifndef LOOM_TRAIN_PLOT_H
#define LOOM_TRAIN_PLOT_H

#include "plot/curves.h"
#include "plot/svg.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { LOOM_PLOT_MAX_RUNS = 21 }; /* seven colours times three kinds of line; more runs could not be told apart */

typedef enum loom_plot_x { LOOM_PLOT_STEP, LOOM_PLOT_TOKENS, LOOM_PLOT_TIME } loom_plot_x;

typedef struct loom_plot_options {
    const char *title; /* NULL or empty: the run's name */
    loom_plot_x x;
    bool log_x;
    int64_t smooth; /* the number of steps to average over; 1: none, 0: a fiftieth of each run */
} loom_plot_options;

/* Draws 1 to LOOM_PLOT_MAX_RUNS runs: a table of their last values, the loss and the validation loss, the learning
 * rate, the gradient norm and the throughput. A loss that spans a factor of 100, or a norm of 30, gets a logarithmic
 * axis. The caller frees the picture, after an error too. */
bool loom_plot_draw(loom_svg *svg, const loom_curves *runs, int n_runs, const loom_plot_options *options,
                    loom_error *error);

#ifdef __cplusplus
}
#endif
#endif
