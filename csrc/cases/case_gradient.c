/* Backward ops against finite differences of forward ops, on the oracle. */
#include "cases/case_internal.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/random.h"

/* Case.h says what these are. */
static const double step = 0x1p-10, variation = 8;

static int op_count(const loom_case *c) {
    int n = 0;
    while (n < LOOM_CASE_OPS && c->cases->op[n].arguments) n++;
    return n;
}

/* Whether f depends on the op: it writes an output that has a cotangent. */
static bool is_forward(const loom_case *c, int op) {
    for (int i = 0; i < c->n_cotangents; i++)
        for (int j = 0; j < c->n_tensors; j++)
            if (c->tensor[j].written_by == op && !strcmp(c->tensor[j].name, c->cotangent[i].output)) return true;
    return false;
}

/* f = sum of output * cotangent, each as the last run left it; `rounding` is the size of f's rounding error. */
static double weighted_sum(loom_case *c, double *rounding) {
    long double sum = 0;
    double error_square = 0;
    for (int i = 0; i < c->n_cotangents; i++) {
        const loom_case_tensor *output = loom_case_find(c, c->cotangent[i].output);
        const loom_case_tensor *cotangent = loom_case_find(c, c->cotangent[i].cotangent);
        const loom_case_bound *bound = &output->bound;
        const double relative = loom_case_epsilon(LOOM_F64) * (1 + sqrt(bound->sum) + bound->chain);
        for (int64_t j = 0; j < output->elements; j++) {
            const double term = output->reference[j] * cotangent->value[j];
            const double error = relative * fmax(fabs(output->reference[j]), bound->floor) * cotangent->value[j];
            sum += (long double)term;
            error_square += error * error;
        }
    }
    *rounding = sqrt(error_square);
    return (double)sum;
}

static bool evaluate(loom_case *c, loom_device *oracle, double *f, double *rounding, loom_error *error) {
    for (int op = 0; op < op_count(c); op++)
        if (is_forward(c, op) && !loom_case_run_oracle(c, op, oracle, error)) return false;
    *f = weighted_sum(c, rounding);
    return true;
}

static bool finite_difference(loom_case *c, loom_device *oracle, double *element, double *slope, double *rounding,
                              loom_error *error) {
    const double at = *element, shift[4] = {step, -step, 2 * step, -2 * step};
    double f[4];
    bool ran = true;
    for (int i = 0; ran && i < 4; i++) {
        *element = at + shift[i];
        ran = evaluate(c, oracle, &f[i], rounding, error);
    }
    *element = at;
    *slope = (8 * (f[0] - f[1]) - (f[2] - f[3])) / (12 * step);
    *rounding *= 1.5 / step;
    return ran;
}

static void compare(loom_case_result *result, const char *name, int64_t element, double gradient, double slope,
                    double rms, double rounding) {
    const double size = fmax(fabs(gradient), rms);
    const double allowed = pow(variation * step, 4) / 30 * size + rounding, off = fabs(gradient - slope);
    const double ratio = off == 0 ? 0 : off / allowed;
    if (!result->tensor || !(ratio <= result->ratio)) {
        result->tensor = name;
        result->element_error = size > 0 ? off / size : off;
        result->element_bound = size > 0 ? allowed / size : allowed;
        result->ratio = ratio;
    }
    if (ratio <= 1 || result->verdict == LOOM_CASE_FAILED) return;
    result->verdict = LOOM_CASE_FAILED;
    snprintf(result->message, sizeof result->message,
             "element %lld of %s is %.12g and the finite difference %.12g: %.3g off, %.3g allowed", (long long)element,
             name, gradient, slope, off, allowed);
}

/* One differentiated input. */
static bool check_input(loom_case *c, loom_device *oracle, int pair, int samples, const double *gradient,
                        loom_case_result *result, loom_error *error) {
    loom_case_tensor *input = loom_case_find(c, c->gradient[pair].input);
    const int64_t n = input->elements;
    double square = 0;
    for (int64_t i = 0; i < n; i++) square += gradient[i] * gradient[i];
    const bool all = n <= 2 * samples;
    for (int64_t i = 0; i < (all ? n : samples); i++) {
        const loom_random4 r = loom_random(c->seed, LOOM_RANDOM_TEST, 1000 + (uint32_t)pair, (uint64_t)i);
        const int64_t element = all ? i : (int64_t)(r.word[0] % (uint64_t)n);
        double slope, rounding;
        if (!finite_difference(c, oracle, &input->value[element], &slope, &rounding, error)) return false;
        compare(result, c->gradient[pair].gradient, element, gradient[element], slope, sqrt(square / (double)n),
                rounding);
    }
    return true;
}

/* Runs every op in order, each reading what the ones before it wrote, unrounded. */
static bool run_all(loom_case *c, loom_device *oracle, loom_error *error) {
    for (int op = 0; op < op_count(c); op++) {
        if (!loom_case_run_oracle(c, op, oracle, error)) return false;
        for (int i = 0; i < c->n_tensors; i++) {
            loom_case_tensor *t = &c->tensor[i];
            if (t->written_by == op && t->role[op] == LOOM_CASE_WRITTEN)
                memcpy(t->value, t->reference, (size_t)t->elements * sizeof(double));
        }
    }
    return true;
}

bool loom_case_check_gradients(loom_case *c, loom_device *oracle, int samples, loom_case_result *result,
                               loom_error *error) {
    *result = (loom_case_result){.verdict = LOOM_CASE_OK};
    LOOM_CHECK(c->n_gradients > 0 && c->n_cotangents > 0);
    if (!loom_case_make_values(c, op_count(c) - 1, error) || !run_all(c, oracle, error)) return false;
    for (int i = 0; i < c->n_gradients; i++) {
        const loom_case_tensor *t = loom_case_find(c, c->gradient[i].gradient);
        double *gradient = malloc((size_t)t->elements * sizeof *gradient);
        if (!gradient) return loom_fail(error, "out of memory for the gradients of a test case of %s", c->cases->name);
        const bool added = t->role[t->written_by] == LOOM_CASE_UPDATED;
        for (int64_t j = 0; j < t->elements; j++) gradient[j] = t->reference[j] - (added ? t->value[j] : 0);
        const bool ran = check_input(c, oracle, i, samples, gradient, result, error);
        free(gradient);
        if (!ran) return false;
    }
    return true;
}
