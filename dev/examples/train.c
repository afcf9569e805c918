/* Trains a small byte-level GPT on a file through the library's headers, without the program:
 *     cc train.c $(pkg-config --cflags --libs gptloom) -o train && ./train FILE [STEPS] */
#include <gptloom/gptloom.h>
#include <stdlib.h>

static bool print_byte(void *user, int32_t token) {
    (void)user;
    return token < 256 && putchar(token) != EOF;
}

int main(int argc, char **argv) {
    if (argc < 2) return fputs("usage: train FILE [STEPS]\n", stderr), 2;
    loom_error error;
    loom_trainer *trainer = NULL;
    loom_step_report report;
    loom_train_options options = loom_train_options_defaults();
    bool ok = loom_train_options_set(&options, "data", argv[1], &error) &&
              loom_train_options_set(&options, "model", "nano", &error) &&
              loom_train_options_set(&options, "steps", argc > 2 ? argv[2] : "500", &error) &&
              loom_train_options_set(&options, "lr", "3e-3", &error) &&
              loom_trainer_open(&trainer, &options, NULL, NULL, &error);
    for (int64_t step = 0; ok && step < loom_trainer_steps_planned(trainer); step++) {
        ok = loom_trainer_step(trainer, &report, &error);
        if (ok && report.step % 50 == 0) printf("step %d  loss %.3f\n", (int)report.step, (double)report.loss);
    }
    if (ok) ok = loom_trainer_sample(trainer, 200, print_byte, NULL, NULL, &error);
    if (!ok) fprintf(stderr, "train: %s\n", error.message);
    loom_trainer_close(trainer);
    loom_train_options_free(&options);
    return ok ? 0 : 2;
}
