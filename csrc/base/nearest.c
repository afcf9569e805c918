#include "base/nearest.h"

#include <string.h>

enum { LONGEST = 63 };

static int smallest(int a, int b) {
    return a < b ? a : b;
}

int loom_name_distance(const char *a, const char *b) {
    int distance[LONGEST + 1][LONGEST + 1];
    const int n = smallest((int)strnlen(a, LONGEST), LONGEST), m = smallest((int)strnlen(b, LONGEST), LONGEST);
    for (int i = 0; i <= n; i++) {
        for (int j = 0; j <= m; j++) {
            if (i == 0 || j == 0) {
                distance[i][j] = i + j;
                continue;
            }
            const int replace = distance[i - 1][j - 1] + (a[i - 1] != b[j - 1]);
            int best = smallest(replace, smallest(distance[i - 1][j], distance[i][j - 1]) + 1);
            if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1])
                best = smallest(best, distance[i - 2][j - 2] + 1);
            distance[i][j] = best;
        }
    }
    return distance[n][m];
}

const char *loom_nearest_name(const char *word, const char *const *names) {
    const char *nearest = NULL;
    int best = (int)strnlen(word, LONGEST) / 3 + 1;
    for (; *names; names++) {
        const int distance = loom_name_distance(word, *names);
        if (distance <= best && (!nearest || distance < best)) nearest = *names, best = distance;
    }
    return nearest;
}
