#include "progress.h"

#include "base/clock.h"

#include <math.h>
#include <string.h>
#include <sys/ioctl.h>
#include <stdlib.h>
#include <unistd.h>

enum {
    EACH_STEP_UNTIL = 10, /* the number of first steps that each have a plain line */
    PLAIN_LINES = 100,    /* the approximate number of plain lines after those */
    SHORTEST_BAR = 10,    /* in columns, with the brackets */
    LONGEST_BAR = 40,
    FIELDS = 8, /* fields of the live line */
    LONGEST_FIELD = 64
};

static const double REDRAW_SECONDS = 0.1;
static const double LOSS_DECAY = 0.95; /* the mean covers about the last twenty steps */
static const double TIME_DECAY = 0.9;

void loom_progress_begin(loom_progress *progress, FILE *out, int64_t first, int64_t last, int64_t total) {
    const char *terminal = getenv("TERM");
    *progress = (loom_progress){.out = out,
                                .live = isatty(fileno(out)) && !(terminal && !strcmp(terminal, "dumb")),
                                .first = first,
                                .last = last,
                                .total = total,
                                .validation = NAN,
                                .validating = -1,
                                .started = loom_seconds_now()};
    progress->report.step = first;
}

double loom_progress_seconds(const loom_progress *progress) {
    return loom_seconds_now() - progress->started;
}

/* ---------------------------------------------------------------------------------------------------------- numbers */

void loom_format_duration(char *text, size_t size, double seconds) {
    if (!(seconds >= 0 && seconds < 1e9)) {
        snprintf(text, size, "?");
        return;
    }
    const long all = lround(seconds), minutes = all / 60, hours = minutes / 60;
    if (hours >= 48)
        snprintf(text, size, "%ldd %02ld:%02ld", hours / 24, hours % 24, minutes % 60);
    else if (hours)
        snprintf(text, size, "%ld:%02ld:%02ld", hours, minutes % 60, all % 60);
    else
        snprintf(text, size, "%ld:%02ld", minutes, all % 60);
}

void loom_format_count(char *text, size_t size, double count) {
    static const char *const units[] = {"", "K", "M", "G", "T", "P"};
    int unit = 0;
    while (unit < 5 && count >= (unit ? 999.5 : 9999.5)) {
        count /= 1000;
        unit++;
    }
    const int decimals = unit == 0 || count >= 99.95 ? 0 : count >= 9.995 ? 1 : 2;
    snprintf(text, size, "%.*f%s", decimals, count, units[unit]);
}

/* -------------------------------------------------------------------------------------------------------- live line */

/* The throughput as a percentage of the machine's peak; negative if the peak is unknown. */
static double percent_of_peak(const loom_progress *progress, double tokens_per_s) {
    return progress->peak > 0 ? 100 * tokens_per_s * progress->flops_per_token / progress->peak : -1;
}

/* The time left in this session, estimated from its steps so far, including validation and saving. */
static double seconds_left(const loom_progress *progress) {
    const int64_t done = progress->report.step - progress->first;
    if (done <= 0) return NAN;
    return loom_progress_seconds(progress) / (double)done * (double)(progress->last - progress->report.step);
}

/* Writes the line's fields in their order; a field whose value is unknown is empty. */
static void make_fields(const loom_progress *progress, char field[FIELDS][LONGEST_FIELD]) {
    const loom_step_report *report = &progress->report;
    char rate[16], left[24];
    memset(field, 0, FIELDS * sizeof field[0]);
    const double tokens_per_s = progress->ms > 0 ? report->tokens_per_s * report->ms / progress->ms : 0;
    const double percent = percent_of_peak(progress, tokens_per_s);
    loom_format_count(rate, sizeof rate, tokens_per_s);
    loom_format_duration(left, sizeof left, seconds_left(progress));
    const int digits = snprintf(NULL, 0, "%lld", (long long)progress->total);
    snprintf(field[0], LONGEST_FIELD, "%*lld/%lld", digits, (long long)report->step, (long long)progress->total);
    snprintf(field[1], LONGEST_FIELD, "loss %.3f", progress->weight > 0 ? progress->loss / progress->weight : NAN);
    if (progress->validating >= 0)
        snprintf(field[2], LONGEST_FIELD, "validates %.0f%%", 100 * progress->validating);
    else if (!isnan(progress->validation))
        snprintf(field[2], LONGEST_FIELD, "val %.3f", progress->validation);
    snprintf(field[3], LONGEST_FIELD, "lr %.2e", (double)report->lr);
    snprintf(field[4], LONGEST_FIELD, "norm %-5.3g", (double)report->grad_norm);
    snprintf(field[5], LONGEST_FIELD, "%s tok/s", rate);
    if (percent >= 0)
        snprintf(field[6], LONGEST_FIELD, "%.0f%% of %s peak", percent, loom_dtype_name(progress->peak_dtype));
    snprintf(field[7], LONGEST_FIELD, "%s left", left);
}

static void draw_bar(char *text, int columns, double part) {
    const int inside = columns - 2;
    const int filled = part >= 1 ? inside : part > 0 ? (int)(part * inside) : 0;
    text[0] = '[';
    memset(text + 1, '=', (size_t)filled);
    memset(text + 1 + filled, ' ', (size_t)(inside - filled));
    if (filled > 0 && filled < inside) text[filled] = '>';
    text[columns - 1] = ']';
    text[columns] = 0;
}

/* Makes a line of at most `width` columns: the bar shrinks first, then the least important parts are left out. */
static void make_line(const loom_progress *progress, char *text, size_t size, int width) {
    enum { BAR = FIELDS };
    static const int dispensable[] = {4, 3, BAR, 6, 2, 7, 5, 1}; /* in the order in which they are left out */
    char field[FIELDS][LONGEST_FIELD], bar[LONGEST_BAR + 1] = "";
    int used = SHORTEST_BAR - 1;
    bool has_bar = true;
    make_fields(progress, field);
    for (int i = 0; i < FIELDS; i++) used += field[i][0] ? (int)strlen(field[i]) + 2 : 0;
    for (size_t i = 0; i < sizeof dispensable / sizeof *dispensable && used > width; i++) {
        char *gone = dispensable[i] == BAR ? NULL : field[dispensable[i]];
        if (!gone) {
            has_bar = false;
            used -= SHORTEST_BAR + 1;
        } else if (*gone) {
            used -= (int)strlen(gone) + 2;
            *gone = 0;
        }
    }
    const int room = SHORTEST_BAR + width - used;
    if (has_bar && room >= SHORTEST_BAR)
        draw_bar(bar, room < LONGEST_BAR ? room : LONGEST_BAR, (double)progress->report.step / (double)progress->total);
    int length = snprintf(text, size, "%s%s%s", bar, *bar ? " " : "", field[0]);
    for (int i = 1; i < FIELDS && length >= 0 && (size_t)length < size; i++)
        if (field[i][0]) length += snprintf(text + length, size - (size_t)length, "  %s", field[i]);
    if (width >= 0 && (size_t)width < size) text[width] = 0; /* the terminal is narrower than the number of the step */
}

static int terminal_width(FILE *out) {
    struct winsize window;
    return ioctl(fileno(out), TIOCGWINSZ, &window) == 0 && window.ws_col > 0 ? window.ws_col : 80;
}

static void draw_live(loom_progress *progress) {
    char text[512];
    /* The last column stays empty: some terminals wrap when it is written. */
    make_line(progress, text, sizeof text, terminal_width(progress->out) - 1);
    fprintf(progress->out, "\r%s\x1b[K", text);
    fflush(progress->out);
    progress->drawn = loom_seconds_now();
    progress->open = true;
}

/* ------------------------------------------------------------------------------------------------------ plain lines */

static bool plain_line_is_due(const loom_progress *progress) {
    const int64_t step = progress->report.step, steps = progress->last - progress->first;
    const int64_t every = (steps + PLAIN_LINES - 1) / PLAIN_LINES;
    return step - progress->first <= EACH_STEP_UNTIL || step == progress->last || step % (every > 0 ? every : 1) == 0;
}

static void print_plain(const loom_progress *progress) {
    const loom_step_report *report = &progress->report;
    char rate[16], left[24];
    loom_format_count(rate, sizeof rate, report->tokens_per_s);
    loom_format_duration(left, sizeof left, seconds_left(progress));
    fprintf(progress->out, "step %lld/%lld  loss %.4f  lr %.2e  norm %.3g  %.1f ms  %s tok/s", (long long)report->step,
            (long long)progress->total, (double)report->loss, (double)report->lr, (double)report->grad_norm, report->ms,
            rate);
    const double percent = percent_of_peak(progress, report->tokens_per_s);
    if (percent >= 0) fprintf(progress->out, "  %.0f%% of %s peak", percent, loom_dtype_name(progress->peak_dtype));
    fprintf(progress->out, "  %s left\n", left);
    fflush(progress->out);
}

bool loom_progress_is_due(double seconds, double part, double last_line) {
    static const double until_clear = 3, is_long = 30, apart = 180;
    if (part <= 0) return false;
    const double whole = seconds / part;
    return last_line < 0 ? seconds >= until_clear && whole >= is_long : seconds - last_line >= fmax(whole / 10, apart);
}

static void print_validating(loom_progress *progress, int64_t step, double part) {
    char count[16], left[24];
    const double seconds = loom_seconds_now() - progress->validation_began;
    if (!loom_progress_is_due(seconds, part, progress->line_at)) return;
    loom_format_count(count, sizeof count, (double)progress->validation_tokens);
    loom_format_duration(left, sizeof left, seconds / part - seconds);
    fprintf(progress->out, "step %lld: validates on %s tokens: %.0f%% done, about %s left\n", (long long)step, count,
            100 * part, left);
    fflush(progress->out);
    progress->line_at = seconds;
}

/* ----------------------------------------------------------------------------------------------------------- events */

void loom_progress_step(loom_progress *progress, const loom_step_report *report) {
    progress->report = *report;
    progress->tokens += llround(report->tokens_per_s * report->ms / 1000);
    /* A loss that is not finite is shown until finite losses follow; then a new mean begins. */
    if (!isfinite(progress->loss)) progress->loss = progress->weight = 0;
    progress->loss = LOSS_DECAY * progress->loss + (1 - LOSS_DECAY) * (double)report->loss;
    progress->weight = LOSS_DECAY * progress->weight + (1 - LOSS_DECAY);
    progress->ms = progress->ms > 0 ? TIME_DECAY * progress->ms + (1 - TIME_DECAY) * report->ms : report->ms;
    if (report->skipped) {
        progress->skipped++;
        loom_progress_interrupt(progress);
        fprintf(progress->out, "step %lld: a spike (loss %.4f, gradient norm %.3g): its update is left out\n",
                (long long)report->step, (double)report->loss, (double)report->grad_norm);
    }
    if (!progress->live) {
        if (plain_line_is_due(progress)) print_plain(progress);
    } else if (loom_seconds_now() - progress->drawn >= REDRAW_SECONDS || report->step == progress->last) {
        draw_live(progress);
    }
}

void loom_progress_validating(loom_progress *progress, int64_t step, double part) {
    if (progress->validating < 0) {
        progress->validation_began = loom_seconds_now();
        progress->line_at = -1;
    }
    progress->validating = part;
    if (!progress->live)
        print_validating(progress, step, part);
    else if (loom_seconds_now() - progress->drawn >= REDRAW_SECONDS)
        draw_live(progress);
}

void loom_progress_validated(loom_progress *progress, int64_t step, const loom_validation *result) {
    char count[16];
    progress->validating = -1;
    progress->validation = result->loss;
    progress->validation_seconds += result->seconds;
    loom_format_count(count, sizeof count, (double)result->tokens);
    if (progress->live)
        draw_live(progress);
    else
        fprintf(progress->out, "step %lld: validation loss %.4f on %s tokens in %.3g s\n", (long long)step,
                result->loss, count, result->seconds);
    fflush(progress->out);
}

void loom_progress_interrupt(loom_progress *progress) {
    if (progress->open) fputc('\n', progress->out);
    progress->open = false;
}

void loom_progress_end(loom_progress *progress) {
    progress->validating = -1;
    if (progress->open) draw_live(progress);
    loom_progress_interrupt(progress);
}
