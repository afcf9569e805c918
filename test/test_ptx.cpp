/* The emulation of PTX instructions and of 16-bit numbers, against the PTX ISA and IEEE 754. The layouts of fragments
 * are written down here as the ISA's figures show them ("Matrix Fragments for mma.m16n8k16 with floating point type",
 * "ldmatrix"), value by value: had the emulation and a kernel the same mistake, they would agree with each other. */
#include "kernels/ptx.h"

#include "simt_launch.h"

#include <gtest/gtest.h>

#include <cfloat>
#include <cmath>
#include <cstring>
#include <random>
#include <string>
#include <vector>

namespace {

template <typename... P> void run(void (*kernel)(P...), dim3 block, std::common_type_t<P>... arguments) {
    simt::kernel_call_of<P...> call(kernel, arguments...);
    call.name = "tested";
    call.block = block;
    std::string failure;
    ASSERT_TRUE(simt::run(call, &failure)) << failure;
}

/* ---------------------------------------------------------------------------------------------- the ISA's fragments */

/* Matrix A, 16 x 16, by rows: which lane has columns 2 p and 2 p + 1 of row r (A_LANE[r][p]), and in which register. */
const int A_LANE[16][8] = {
    {0, 1, 2, 3, 0, 1, 2, 3},         {4, 5, 6, 7, 4, 5, 6, 7},         {8, 9, 10, 11, 8, 9, 10, 11},
    {12, 13, 14, 15, 12, 13, 14, 15}, {16, 17, 18, 19, 16, 17, 18, 19}, {20, 21, 22, 23, 20, 21, 22, 23},
    {24, 25, 26, 27, 24, 25, 26, 27}, {28, 29, 30, 31, 28, 29, 30, 31}, {0, 1, 2, 3, 0, 1, 2, 3},
    {4, 5, 6, 7, 4, 5, 6, 7},         {8, 9, 10, 11, 8, 9, 10, 11},     {12, 13, 14, 15, 12, 13, 14, 15},
    {16, 17, 18, 19, 16, 17, 18, 19}, {20, 21, 22, 23, 20, 21, 22, 23}, {24, 25, 26, 27, 24, 25, 26, 27},
    {28, 29, 30, 31, 28, 29, 30, 31}};
const int A_REGISTER[16][8] = {
    {0, 0, 0, 0, 2, 2, 2, 2}, {0, 0, 0, 0, 2, 2, 2, 2}, {0, 0, 0, 0, 2, 2, 2, 2}, {0, 0, 0, 0, 2, 2, 2, 2},
    {0, 0, 0, 0, 2, 2, 2, 2}, {0, 0, 0, 0, 2, 2, 2, 2}, {0, 0, 0, 0, 2, 2, 2, 2}, {0, 0, 0, 0, 2, 2, 2, 2},
    {1, 1, 1, 1, 3, 3, 3, 3}, {1, 1, 1, 1, 3, 3, 3, 3}, {1, 1, 1, 1, 3, 3, 3, 3}, {1, 1, 1, 1, 3, 3, 3, 3},
    {1, 1, 1, 1, 3, 3, 3, 3}, {1, 1, 1, 1, 3, 3, 3, 3}, {1, 1, 1, 1, 3, 3, 3, 3}, {1, 1, 1, 1, 3, 3, 3, 3}};

/* Matrix B, 16 x 8, by columns: which lane has rows 2 p and 2 p + 1 of column n (B_LANE[p][n]), and in which
 * register. */
const int B_LANE[8][8] = {{0, 4, 8, 12, 16, 20, 24, 28},  {1, 5, 9, 13, 17, 21, 25, 29}, {2, 6, 10, 14, 18, 22, 26, 30},
                          {3, 7, 11, 15, 19, 23, 27, 31}, {0, 4, 8, 12, 16, 20, 24, 28}, {1, 5, 9, 13, 17, 21, 25, 29},
                          {2, 6, 10, 14, 18, 22, 26, 30}, {3, 7, 11, 15, 19, 23, 27, 31}};
const int B_REGISTER[8][8] = {{0, 0, 0, 0, 0, 0, 0, 0}, {0, 0, 0, 0, 0, 0, 0, 0}, {0, 0, 0, 0, 0, 0, 0, 0},
                              {0, 0, 0, 0, 0, 0, 0, 0}, {1, 1, 1, 1, 1, 1, 1, 1}, {1, 1, 1, 1, 1, 1, 1, 1},
                              {1, 1, 1, 1, 1, 1, 1, 1}, {1, 1, 1, 1, 1, 1, 1, 1}};

/* Matrices C and D, 16 x 8 floats: which lane has columns 2 p and 2 p + 1 of row r (C_LANE[r][p]), and in which
 * register the first of them; the second is in the next. */
const int C_LANE[16][4] = {{0, 1, 2, 3},     {4, 5, 6, 7},     {8, 9, 10, 11},   {12, 13, 14, 15},
                           {16, 17, 18, 19}, {20, 21, 22, 23}, {24, 25, 26, 27}, {28, 29, 30, 31},
                           {0, 1, 2, 3},     {4, 5, 6, 7},     {8, 9, 10, 11},   {12, 13, 14, 15},
                           {16, 17, 18, 19}, {20, 21, 22, 23}, {24, 25, 26, 27}, {28, 29, 30, 31}};
const int C_REGISTER[16][4] = {{0, 0, 0, 0}, {0, 0, 0, 0}, {0, 0, 0, 0}, {0, 0, 0, 0}, {0, 0, 0, 0}, {0, 0, 0, 0},
                               {0, 0, 0, 0}, {0, 0, 0, 0}, {2, 2, 2, 2}, {2, 2, 2, 2}, {2, 2, 2, 2}, {2, 2, 2, 2},
                               {2, 2, 2, 2}, {2, 2, 2, 2}, {2, 2, 2, 2}, {2, 2, 2, 2}};

/* ldmatrix, 8 x 8: which lane gets columns 2 p and 2 p + 1 of row r. */
const int ROW_LANE[8][4] = {{0, 1, 2, 3},     {4, 5, 6, 7},     {8, 9, 10, 11},   {12, 13, 14, 15},
                            {16, 17, 18, 19}, {20, 21, 22, 23}, {24, 25, 26, 27}, {28, 29, 30, 31}};

/* ldmatrix.trans: which lane gets rows 2 p and 2 p + 1 of column c (COLUMN_LANE[p][c]). */
const int COLUMN_LANE[4][8] = {{0, 4, 8, 12, 16, 20, 24, 28},
                               {1, 5, 9, 13, 17, 21, 25, 29},
                               {2, 6, 10, 14, 18, 22, 26, 30},
                               {3, 7, 11, 15, 19, 23, 27, 31}};

/* -------------------------------------------------------------------------------------------------------------- mma */

struct Fragments {
    uint32_t a[4], b[2];
    float c[4];
};

template <typename T> __global__ void multiply(const Fragments *in, float (*out)[4]) {
    ptx::mma_16x8x16(out[threadIdx.x], in[threadIdx.x].a, in[threadIdx.x].b, in[threadIdx.x].c, T());
}

struct Matrices {
    float a[16][16], b[16][8], c[16][8], d[16][8];
};

uint32_t bits_of(bf16 x) {
    return __bfloat16_as_ushort(x);
}
uint32_t bits_of(fp16 x) {
    return __half_as_ushort(x);
}
template <typename T> uint32_t two(float low, float high) {
    return bits_of(from_float<T>(high)) << 16 | bits_of(from_float<T>(low));
}

/* d by the emulation's mma, through the tables. */
template <typename T> void multiply_by_tables(Matrices *m) {
    std::vector<Fragments> in(32);
    float out[32][4];
    for (int r = 0; r < 16; r++)
        for (int p = 0; p < 8; p++) in[A_LANE[r][p]].a[A_REGISTER[r][p]] = two<T>(m->a[r][2 * p], m->a[r][2 * p + 1]);
    for (int p = 0; p < 8; p++)
        for (int n = 0; n < 8; n++) in[B_LANE[p][n]].b[B_REGISTER[p][n]] = two<T>(m->b[2 * p][n], m->b[2 * p + 1][n]);
    for (int r = 0; r < 16; r++)
        for (int p = 0; p < 4; p++)
            for (int i = 0; i < 2; i++) in[C_LANE[r][p]].c[C_REGISTER[r][p] + i] = m->c[r][2 * p + i];
    run(multiply<T>, 32, in.data(), out);
    for (int r = 0; r < 16; r++)
        for (int p = 0; p < 4; p++)
            for (int i = 0; i < 2; i++) m->d[r][2 * p + i] = out[C_LANE[r][p]][C_REGISTER[r][p] + i];
}

double product(const Matrices &m, int r, int n) {
    double sum = m.c[r][n];
    for (int k = 0; k < 16; k++) sum += (double)m.a[r][k] * m.b[k][n];
    return sum;
}

template <typename T> class Mma : public ::testing::Test {};
typedef ::testing::Types<bf16, fp16> Types;
TYPED_TEST_SUITE(Mma, Types);

/* A single one in a picks out a row of b, whose values all differ: each value of a, b, c and d has its place. */
TYPED_TEST(Mma, EveryValueHasItsPlace) {
    for (int row = 0; row < 16; row++)
        for (int k = 0; k < 16; k++) {
            Matrices m = {};
            m.a[row][k] = 1;
            for (int i = 0; i < 16; i++)
                for (int n = 0; n < 8; n++) {
                    m.b[i][n] = (float)(8 * i + n + 1);
                    m.c[i][n] = (float)(1000 * (8 * i + n + 1));
                }
            multiply_by_tables<TypeParam>(&m);
            for (int i = 0; i < 16; i++)
                for (int n = 0; n < 8; n++)
                    ASSERT_EQ(m.d[i][n], m.c[i][n] + (i == row ? (float)(8 * k + n + 1) : 0.0f)) << row << " " << k;
        }
}

/* Small integers, of which all sums are exact. */
TYPED_TEST(Mma, MultipliesAndAdds) {
    std::mt19937 random(1);
    std::uniform_int_distribution<int> small(-50, 50);
    for (int round = 0; round < 100; round++) {
        Matrices m = {};
        for (auto &row : m.a)
            for (float &x : row) x = (float)small(random);
        for (auto &row : m.b)
            for (float &x : row) x = (float)small(random);
        for (auto &row : m.c)
            for (float &x : row) x = (float)small(random) * 1024;
        multiply_by_tables<TypeParam>(&m);
        for (int r = 0; r < 16; r++)
            for (int n = 0; n < 8; n++) ASSERT_EQ(m.d[r][n], product(m, r, n));
    }
}

/* Fractions of all sizes, within the rounding of 16 additions. */
TYPED_TEST(Mma, RoundsOnlySums) {
    std::mt19937 random(2);
    std::normal_distribution<float> normal;
    for (int round = 0; round < 100; round++) {
        Matrices m = {};
        for (auto &row : m.a)
            for (float &x : row) x = to_float(from_float<TypeParam>(std::ldexp(normal(random), round % 20 - 10)));
        for (auto &row : m.b)
            for (float &x : row) x = to_float(from_float<TypeParam>(normal(random)));
        for (auto &row : m.c)
            for (float &x : row) x = normal(random);
        multiply_by_tables<TypeParam>(&m);
        for (int r = 0; r < 16; r++)
            for (int n = 0; n < 8; n++) {
                double size = std::fabs(m.c[r][n]);
                for (int k = 0; k < 16; k++) size += std::fabs((double)m.a[r][k] * m.b[k][n]);
                ASSERT_NEAR(m.d[r][n], product(m, r, n), 16 * FLT_EPSILON / 2 * size);
            }
    }
}

/* Denormals count, infinity and NaN spread along their row or column and no further. */
TYPED_TEST(Mma, KeepsSpecialValues) {
    const float denormal = to_float(TypeParam{3}), largest = to_float(from_float<TypeParam>(60000.0f));
    Matrices m = {};
    m.a[0][0] = denormal;
    m.b[0][0] = 2;
    m.a[1][5] = INFINITY;
    m.a[2][6] = NAN;
    m.a[3][7] = largest;
    for (int n = 0; n < 8; n++) m.b[5][n] = m.b[7][n] = n % 2 ? -1.0f : 1.0f;
    multiply_by_tables<TypeParam>(&m);
    EXPECT_EQ(m.d[0][0], 2 * denormal);
    EXPECT_GT(denormal, 0);
    for (int n = 0; n < 8; n++) {
        EXPECT_EQ(m.d[1][n], n % 2 ? -INFINITY : INFINITY);
        EXPECT_TRUE(std::isnan(m.d[2][n]));
        EXPECT_EQ(m.d[3][n], n % 2 ? -largest : largest);
        EXPECT_EQ(m.d[4][n], 0);
    }
}

/* --------------------------------------------------------------------------------------------------------- ldmatrix */

/* The value of row r, column c of matrix m. */
uint32_t value_at(int m, int r, int c) {
    return (uint32_t)(1000 + 64 * m + 8 * r + c);
}

/* Row r of matrix m lies at (11 r + 90 m) * 16 bytes. */
__global__ void load_all(uint32_t (*plain4)[4], uint32_t (*trans4)[4], uint32_t (*plain2)[2], uint32_t (*trans2)[2]) {
    SHARED_ARRAY(uint16_t, memory, 4 * 90 * 8);
    const unsigned l = threadIdx.x;
    for (unsigned c = 0; c < 8; c++)
        memory[(11 * (l % 8) + 90 * (l / 8)) * 8 + c] = (uint16_t)(1000 + 64 * (l / 8) + 8 * (l % 8) + c);
    __syncthreads();
    const uint16_t *row = memory + (11 * (l % 8) + 90 * (l / 8)) * 8;
    ptx::ldmatrix_x4(plain4[l], row);
    ptx::ldmatrix_x4_trans(trans4[l], row);
    ptx::ldmatrix_x2(plain2[l], l < 16 ? row : nullptr); /* addresses of the upper lanes are not used */
    ptx::ldmatrix_x2_trans(trans2[l], l < 16 ? row : nullptr);
}

TEST(Ldmatrix, EveryLaneGetsItsValues) {
    uint32_t plain4[32][4], trans4[32][4], plain2[32][2], trans2[32][2];
    run(load_all, 32, plain4, trans4, plain2, trans2);
    for (int m = 0; m < 4; m++)
        for (int i = 0; i < 8; i++)
            for (int p = 0; p < 4; p++) {
                const uint32_t along = value_at(m, i, 2 * p + 1) << 16 | value_at(m, i, 2 * p);
                const uint32_t across = value_at(m, 2 * p + 1, i) << 16 | value_at(m, 2 * p, i);
                EXPECT_EQ(plain4[ROW_LANE[i][p]][m], along);
                EXPECT_EQ(trans4[COLUMN_LANE[p][i]][m], across);
                if (m >= 2) continue;
                EXPECT_EQ(plain2[ROW_LANE[i][p]][m], along);
                EXPECT_EQ(trans2[COLUMN_LANE[p][i]][m], across);
            }
}

/* As a kernel uses them together: a and b by rows in shared memory, b loaded transposed. */
__global__ void product_from_shared(float *d, const float *a, const float *b) {
    SHARED_ARRAY(bf16, a_tile, 16 * 16);
    SHARED_ARRAY(bf16, b_tile, 16 * 8);
    const unsigned l = threadIdx.x;
    for (unsigned i = l; i < 256; i += 32) a_tile[i] = from_float<bf16>(a[i]);
    for (unsigned i = l; i < 128; i += 32) b_tile[i] = from_float<bf16>(b[i]);
    __syncthreads();
    uint32_t fa[4], fb[2];
    float sum[4] = {};
    ptx::ldmatrix_x4(fa, a_tile + l % 16 * 16 + l / 16 * 8);
    ptx::ldmatrix_x2_trans(fb, b_tile + l % 16 * 8);
    ptx::mma_16x8x16(sum, fa, fb, sum, bf16());
    for (unsigned i = 0; i < 4; i++) d[(l / 4 + i / 2 * 8) * 8 + l % 4 * 2 + i % 2] = sum[i];
}

TEST(Ldmatrix, FeedsMma) {
    Matrices m = {};
    for (int i = 0; i < 16; i++)
        for (int k = 0; k < 16; k++) m.a[i][k] = (float)((i * 7 + k * 3) % 11 - 5);
    for (int k = 0; k < 16; k++)
        for (int n = 0; n < 8; n++) m.b[k][n] = (float)((k * 5 + n * 2) % 13 - 6);
    run(product_from_shared, 32, &m.d[0][0], &m.a[0][0], &m.b[0][0]);
    for (int r = 0; r < 16; r++)
        for (int n = 0; n < 8; n++) EXPECT_EQ(m.d[r][n], product(m, r, n));
}

/* --------------------------------------------------------------------------------------------------------- cp.async */

__global__ void copy_bytes(unsigned char *out, const unsigned char *in) {
    SHARED_ARRAY(unsigned char, memory, 17 * 16);
    if (threadIdx.x < 17) ptx::cp_async_16(memory + 16 * threadIdx.x, in + 16 * threadIdx.x, (int)threadIdx.x);
    ptx::cp_async_commit();
    ptx::cp_async_wait<0>();
    __syncthreads();
    for (unsigned i = threadIdx.x; i < 17 * 16; i += 32) out[i] = memory[i];
}

TEST(CpAsync, FillsWithZeros) {
    alignas(16) unsigned char in[17 * 16];
    unsigned char out[17 * 16];
    for (int i = 0; i < 17 * 16; i++) in[i] = (unsigned char)(i % 255 + 1);
    run(copy_bytes, 32, out, in);
    for (int i = 0; i < 17 * 16; i++) EXPECT_EQ(out[i], i % 16 < i / 16 ? in[i] : 0);
}

/* seen[g][w]: whether group g is there after a wait for all but w groups. Copies of 4 groups, the last not
 * committed. */
template <int PENDING> __global__ void wait_for(unsigned *seen, const uint4 *in) {
    SHARED_ARRAY(uint4, memory, 4);
    for (int g = 0; g < 4; g++) {
        ptx::cp_async_16(memory + g, in);
        if (g < 3) ptx::cp_async_commit();
    }
    ptx::cp_async_wait<PENDING>();
    for (int g = 0; g < 4; g++) seen[g] = memory[g].x == in->x;
    ptx::cp_async_commit();
    ptx::cp_async_wait<0>();
    for (int g = 0; g < 4; g++) seen[g + 4] = memory[g].x == in->x;
}

TEST(CpAsync, WaitsForAllButTheLastGroups) {
    const uint4 in = {5, 6, 7, 8};
    const std::vector<void (*)(unsigned *, const uint4 *)> kernels = {wait_for<0>, wait_for<1>, wait_for<2>,
                                                                      wait_for<3>};
    for (unsigned pending = 0; pending < kernels.size(); pending++) {
        unsigned seen[8];
        run(kernels[pending], 1, seen, &in);
        for (unsigned g = 0; g < 4; g++) {
            EXPECT_EQ(seen[g], g + pending < 3) << "group " << g << ", all but " << pending;
            EXPECT_EQ(seen[g + 4], 1u);
        }
    }
}

/* --------------------------------------------------------------------------------------------------- 16-bit numbers */

struct Format {
    int mantissa, bias, special; /* bits, offset of the exponent, the exponent of infinity */
};
constexpr Format BF16 = {7, 127, 255}, FP16 = {10, 15, 31};

/* What the bits of a number mean, as IEEE 754 says. */
float meaning(uint16_t bits, Format f) {
    const int exponent = bits >> f.mantissa & f.special, mantissa = bits & ((1 << f.mantissa) - 1);
    double value;
    if (exponent == f.special)
        value = mantissa ? NAN : INFINITY;
    else if (exponent == 0)
        value = std::ldexp(mantissa, 1 - f.bias - f.mantissa);
    else
        value = std::ldexp((1 << f.mantissa) + mantissa, exponent - f.bias - f.mantissa);
    return (float)std::copysign(value, bits & 0x8000 ? -1.0 : 1.0);
}

template <typename T> T number(uint16_t bits);
template <> bf16 number<bf16>(uint16_t bits) {
    return __ushort_as_bfloat16(bits);
}
template <> fp16 number<fp16>(uint16_t bits) {
    return __ushort_as_half(bits);
}

template <typename T> void test_conversions(Format f) {
    for (uint32_t bits = 0; bits < 65536; bits++) {
        const float expected = meaning((uint16_t)bits, f), value = to_float(number<T>((uint16_t)bits));
        if (std::isnan(expected)) {
            ASSERT_TRUE(std::isnan(value)) << bits;
            ASSERT_EQ(bits_of(from_float<T>(value)), 0x7FFFu) << bits;
        } else {
            ASSERT_EQ(__float_as_uint(value), __float_as_uint(expected)) << bits;
            ASSERT_EQ(bits_of(from_float<T>(value)), bits);
        }
    }
    /* Between a number and the next: what is nearer, in the middle the even one. The next after the largest is where
     * another binade would begin, and is infinity. */
    const uint16_t infinity = (uint16_t)(f.special << f.mantissa);
    for (uint32_t bits = 0; bits < infinity; bits++) {
        const uint32_t next = bits + 1, even = bits % 2 ? next : bits;
        const double low = meaning((uint16_t)bits, f);
        const double high = next < infinity ? meaning((uint16_t)next, f) : std::ldexp(1.0, f.special - f.bias);
        const float middle = (float)((low + high) / 2);
        ASSERT_EQ(2.0 * middle, low + high);
        ASSERT_EQ(bits_of(from_float<T>(middle)), even) << bits;
        ASSERT_EQ(bits_of(from_float<T>(std::nextafter(middle, 0.0f))), bits);
        ASSERT_EQ(bits_of(from_float<T>(std::nextafter(middle, INFINITY))), next);
        ASSERT_EQ(bits_of(from_float<T>(-middle)), even | 0x8000);
        ASSERT_EQ(bits_of(from_float<T>(std::nextafter(-middle, 0.0f))), bits | 0x8000);
        ASSERT_EQ(bits_of(from_float<T>(std::nextafter(-middle, -INFINITY))), next | 0x8000);
    }
    ASSERT_EQ(bits_of(from_float<T>(FLT_MAX)), infinity);
    ASSERT_EQ(bits_of(from_float<T>(INFINITY)), infinity);
    ASSERT_EQ(bits_of(from_float<T>(FLT_TRUE_MIN)), 0u);
    ASSERT_EQ(bits_of(from_float<T>(-FLT_TRUE_MIN)), 0x8000u);
}

TEST(Conversions, OfAllBfloat16) {
    test_conversions<bf16>(BF16);
}

TEST(Conversions, OfAllHalf) {
    test_conversions<fp16>(FP16);
}

TEST(Conversions, OfPairs) {
    EXPECT_EQ(ptx::pair(1.0f, -2.0f, bf16()), 0xC0003F80u);
    EXPECT_EQ(ptx::pair(1.0f, -2.0f, fp16()), 0xC0003C00u);
}

TEST(Exp2, IsAccurateAndFlushesDenormals) {
    for (float x = -126; x < 128; x += 0.0137f)
        ASSERT_NEAR(ptx::exp2_approximate(x) / std::exp2((double)x), 1.0, 0x1p-22) << x;
    EXPECT_EQ(ptx::exp2_approximate(-126.5f), 0);
    EXPECT_EQ(ptx::exp2_approximate(-INFINITY), 0);
    EXPECT_EQ(ptx::exp2_approximate(128), INFINITY);
    EXPECT_EQ(ptx::exp2_approximate(0), 1);
    EXPECT_TRUE(std::isnan(ptx::exp2_approximate(NAN)));
}

} // namespace
