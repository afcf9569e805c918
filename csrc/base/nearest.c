#include "base/nearest.h"

#include <string.h>

enum { LONGEST = 63 };

static int smallest(int a, int b) {
    return a < b ? a : b;
}

/* Of the matrix of distances between prefixes, three rows are enough, and in each row the cells near the diagonal: all
 * other cells would hold more than `most`. */
static int distance_up_to(const char *a, const char *b, int most) {
    int rows[3][LONGEST + 2];
    const int n = (int)strnlen(a, LONGEST), m = (int)strnlen(b, LONGEST);
    if (n - m > most || m - n > most) return most + 1;
    for (int i = 0; i <= n; i++) {
        int *row = rows[i % 3];
        const int *before = rows[(i + 2) % 3], *two_before = rows[(i + 1) % 3];
        const int first = i > most ? i - most : 0, last = smallest(m, i + most);
        for (int j = first; j <= last; j++) {
            if (i == 0 || j == 0) {
                row[j] = i + j;
                continue;
            }
            const int left = j > first ? row[j - 1] : most + 1;
            int best = smallest(before[j - 1] + (a[i - 1] != b[j - 1]), smallest(before[j], left) + 1);
            if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1])
                best = smallest(best, two_before[j - 2] + 1);
            row[j] = best;
        }
        row[last + 1] = most + 1; /* the next row reads this cell */
    }
    return smallest(rows[n % 3][m], most + 1);
}

int loom_name_distance(const char *a, const char *b) {
    return distance_up_to(a, b, LONGEST);
}

const char *loom_nearest_name(const char *word, const char *const *names) {
    const char *nearest = NULL;
    int most = (int)strnlen(word, LONGEST) / 3 + 1;
    for (; *names && most >= 0; names++) {
        const int distance = distance_up_to(word, *names, most);
        if (distance <= most) nearest = *names, most = distance - 1;
    }
    return nearest;
}
