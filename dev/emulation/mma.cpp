/* The two instructions that a whole warp computes together: mma.sync.m16n8k16 and ldmatrix. The last lane to come
 * computes for all. With g = lane / 4 and t = lane % 4, words[i] holds lane (g, t)'s word at t * 8 + g, so that eight
 * values beside each other are eight rows of a or c, or eight columns of b, at one t. */
#include "simt_ptx.h"

namespace ptx {

/* Eight floats, an operation on which is one instruction, or two, or a few, by what the processor has. */
typedef float floats __attribute__((vector_size(32), aligned(32)));
typedef uint32_t words8 __attribute__((vector_size(32), aligned(32)));

/* The low or the high 16 bits of each word as floats. */
static void low_bf16(floats *to, const words8 *from) {
    *to = (floats)(*from << 16);
}
static void high_bf16(floats *to, const words8 *from) {
    *to = (floats)(*from & 0xFFFF0000u);
}

/* As __half2float, for eight. */
static void widen_fp16(floats *to, words8 magnitude, words8 sign) {
    const words8 scaled = (words8)((floats)(magnitude << 13) * 0x1p112f);
    const words8 special = (words8)(magnitude >= 0x7C00u);
    *to = (floats)((scaled | (special & 0x7F800000u)) | sign << 16);
}
static void low_fp16(floats *to, const words8 *from) {
    widen_fp16(to, *from & 0x7FFFu, *from & 0x8000u);
}
static void high_fp16(floats *to, const words8 *from) {
    widen_fp16(to, *from >> 16 & 0x7FFFu, *from >> 16 & 0x8000u);
}

/* d = a b + c: products are exact in float, and added in the order of k, each sum rounded. (A GPU adds several products
 * at once and truncates; what that may change is part of a case's tolerance.) */
template <void (*LOW)(floats *, const words8 *), void (*HIGH)(floats *, const words8 *)>
static const char *multiply_all(simt::exchange *shown) {
    if (shown->present != 0xFFFFFFFFu) return "mma in a warp of less than 32 lanes";
    const words8 *words = reinterpret_cast<const words8 *>(shown->words); /* [word][t] */
    floats *c = reinterpret_cast<floats *>(shown->words[6]);
    floats *d = reinterpret_cast<floats *>(shown->words[0]);

    floats a[2][16]; /* [half of the rows][k], of eight rows */
    floats b[16];    /* [k], of eight columns */
    for (int k_half = 0; k_half < 2; k_half++)
        for (int t = 0; t < 4; t++) {
            const int k = 8 * k_half + 2 * t;
            for (int m = 0; m < 2; m++) {
                LOW(&a[m][k], &words[(m + 2 * k_half) * 4 + t]);
                HIGH(&a[m][k + 1], &words[(m + 2 * k_half) * 4 + t]);
            }
            LOW(&b[k], &words[(4 + k_half) * 4 + t]);
            HIGH(&b[k + 1], &words[(4 + k_half) * 4 + t]);
        }

    for (int m = 0; m < 2; m++)
        for (int t = 0; t < 4; t++) { /* columns 2 t and 2 t + 1 of c: words 2 m and 2 m + 1 */
            floats even = c[(2 * m) * 4 + t], odd = c[(2 * m + 1) * 4 + t];
            for (int k = 0; k < 16; k++) {
                even += a[m][k] * b[k][2 * t];
                odd += a[m][k] * b[k][2 * t + 1];
            }
            d[(2 * m) * 4 + t] = even;
            d[(2 * m + 1) * 4 + t] = odd;
        }
    return nullptr;
}

const char *multiply_bf16(simt::exchange *shown) {
    return multiply_all<low_bf16, high_bf16>(shown);
}
const char *multiply_fp16(simt::exchange *shown) {
    return multiply_all<low_fp16, high_fp16>(shown);
}

/* Lane 8 i + r gives row r of matrix i. Lane (g, t) gets of each matrix row g, columns 2 t and 2 t + 1; transposed,
 * column g, rows 2 t and 2 t + 1. */
template <int MATRICES, bool TRANSPOSED> static const char *load_all(simt::exchange *shown) {
    if (shown->present != 0xFFFFFFFFu) return "ldmatrix in a warp of less than 32 lanes";
    uint16_t matrix[MATRICES][8][8];
    for (unsigned l = 0; l < 8 * MATRICES; l++) {
        const unsigned at = simt::position(l);
        const uint64_t address = (uint64_t)shown->words[1][at] << 32 | shown->words[0][at];
        const void *row = reinterpret_cast<const void *>((uintptr_t)address);
        if (address % 16 != 0) return "ldmatrix of a row whose address is not a multiple of 16";
        if (!simt::is_shared(row, 16)) return "ldmatrix of a row outside of the block's shared memory";
        memcpy(matrix[l / 8][l % 8], row, 16);
    }
    for (int i = 0; i < MATRICES; i++)
        for (unsigned l = 0; l < 32; l++) {
            const unsigned g = l / 4, t = l % 4;
            const uint16_t low = TRANSPOSED ? matrix[i][2 * t][g] : matrix[i][g][2 * t];
            const uint16_t high = TRANSPOSED ? matrix[i][2 * t + 1][g] : matrix[i][g][2 * t + 1];
            shown->words[i][simt::position(l)] = (uint32_t)high << 16 | low;
        }
    return nullptr;
}

const char *load_2_matrices(simt::exchange *shown) {
    return load_all<2, false>(shown);
}
const char *load_4_matrices(simt::exchange *shown) {
    return load_all<4, false>(shown);
}
const char *load_2_matrices_transposed(simt::exchange *shown) {
    return load_all<2, true>(shown);
}
const char *load_4_matrices_transposed(simt::exchange *shown) {
    return load_all<4, true>(shown);
}

} // namespace ptx
