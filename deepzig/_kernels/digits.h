/* Activations as whole numbers of a few 8-bit digits: how int8 and int4 weights are multiplied where the CPU has VNNI.
 *
 * Included by digit_tiles.h and digit_lanes.h. Knows matrices and float rows, nothing of threads.
 *
 * A row x is cut into turns: the columns of a group of weights, or up to 512 of it; of int4 at least 128 columns. A turn is
 * max|x| / M times whole numbers up to M, given by digits of 8 bits with sign, the highest first. With three digits M is
 * 127 * 2^16: rounding loses 2^-24 of the largest of the turn, whatever the other turns hold. `fast` has two (2^-16).
 * Codes times digits are summed in whole numbers, without error, for each group of columns that has one scale; these sums
 * times scale and unit are added in float, in order. So a row depends neither on the rows multiplied with it nor on whether
 * registers or AMX tiles multiply, and weights need no decoding: a pass over them is bound by memory alone. Codes are
 * unsigned; what their offset adds to a sum, offset * sum of the digits, is taken off where the sum starts.
 */
#ifndef DEEPZIG_DIGITS_H
#define DEEPZIG_DIGITS_H

#include "tiles.h"

/* Whether this CPU multiplies digits. */
#if defined(__AVX512VNNI__) && defined(__AVX512VBMI__)
#define HAS_DIGITS 1
#else
#define HAS_DIGITS 0
#endif

#define DIGITS_MOST 3
#define DIGIT_STEP 64         /* bytes of codes that one instruction takes */
#define DIGIT_MOST_UNIT 512   /* columns of a unit: joined digits of so many products fit 32 bits */
#define DIGIT_ROWS 4          /* weight rows of a register tile for one x row; half as many for more */
#define DIGIT_X_ROWS 4
#define LOWEST_DIGIT 0x1p-8f  /* what the third digit counts where the second counts 1 */

/* Columns whose sums are joined at once where many x rows are multiplied: a group, or a part of one that fits 32 bits. */
INLINE int64_t joined_columns(const Matrix *w) { return least(w->group_size, DIGIT_MOST_UNIT); }

/* Columns of a unit. int4: 128, the nibbles of one instruction, which may have several scales side by side. */
INLINE int64_t unit_columns(const Matrix *w) { return w->format == INT4 ? 128 : joined_columns(w); }

/* Columns of x that are parts of one largest where many x rows are multiplied. */
INLINE int64_t largest_columns(const Matrix *w) {
    return joined_columns(w) < unit_columns(w) ? unit_columns(w) : joined_columns(w);
}

INLINE int64_t unit_count(const Matrix *w) { return parts_of(w->k, unit_columns(w)); }

/* Whether digits can multiply w: groups are whole units, or units whole groups. */
INLINE int takes_digits(const Matrix *w) {
#if HAS_DIGITS
    const int64_t size = w->group_size;
    if (w->format == INT8) return w->k % 64 == 0 && (size >= w->k || (size % 64 == 0 && size <= DIGIT_MOST_UNIT));
    if (w->format == INT4)
        return w->k % 128 == 0 && (size >= w->k || size == 32 || size == 64 || size % 128 == 0);
#endif
    return 0;
}

/* Whether joined columns have one scale. */
INLINE int joined_in_groups(const Matrix *w) { return w->group_size >= w->k || w->group_size <= DIGIT_MOST_UNIT; }

/* Whether registers sum the same columns before they scale (digit_tile), so that both give the same bits. */
INLINE int tiles_equal_rows(const Matrix *w) {
    return joined_columns(w) == unit_columns(w) || (w->format == INT4 && w->group_size < 128);
}

#if HAS_DIGITS

/* sum + products of four unsigned codes with four digits, in each lane. In assembly, since gcc 12 moves the sums of a loop
 * from register to register around its own function for it; an emulation (tests/emulation) has that alone. */
INLINE __m512i add_quads(__m512i sum, __m512i codes, __m512i digits) {
#if defined(EMULATED_AVX512VNNI)
    return _mm512_dpbusd_epi32(sum, codes, digits);
#else
    __asm__("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(codes), "v"(digits));
    return sum;
#endif
}

/* Offset of the codes as instructions see them: int8 codes without offset get one (see code_flip). */
INLINE int code_offset(const Matrix *w) { return w->format == INT4 ? 8 : 128; }

INLINE __m512i code_flip(const Matrix *w) { return _mm512_set1_epi8(w->offset ? 0 : (char)0x80); }

/* max|x| of k floats, a multiple of 2 LANES; NaN if one is not finite. Without their sign, floats are ordered as whole
 * numbers are. */
INLINE float largest(const float *x, int64_t k) {
    const __m512i magnitude = _mm512_set1_epi32(0x7fffffff);
    __m512i most[2] = {_mm512_setzero_si512(), _mm512_setzero_si512()};
    for (int64_t at = 0; at < k; at += 2 * LANES)
        for (int i = 0; i < 2; i++) {
            __m512i value = _mm512_and_si512(_mm512_loadu_si512(x + at + i * LANES), magnitude);
            most[i] = _mm512_max_epu32(most[i], value);
        }
    const uint32_t bits = _mm512_reduce_max_epu32(_mm512_max_epu32(most[0], most[1]));
    return bits < 0x7f800000u ? bits_to_float(bits) : NAN;
}

/* x * factor are whole numbers; `unit` is what their second digit counts in: NaN if an x is NaN or infinity, and so are all
 * products with its row. */
typedef struct {
    float factor, unit;
} DigitScale;

INLINE DigitScale digit_scale(const float *x, int64_t k, int digits) {
    const float most = digits == 3 ? 8323072.0f : 32512.0f;
    float size = largest(x, k);
    if (size < 0x1p-100f) size = 0x1p-100f; /* or the factor is no float */
    return (DigitScale){most / size, size / most / (digits == 3 ? LOWEST_DIGIT : 1)};
}

/* The digits of 16 x, the highest first, in lanes of 32 bits. */
INLINE void take_digits(const float *x, float factor, int digits, __m512i *digit) {
    __m512i number = _mm512_cvtps_epi32((__m512)(vload(x) * factor));
    for (int d = digits - 1; d >= 0; d--) {
        digit[d] = d ? _mm512_srai_epi32(_mm512_slli_epi32(number, 24), 24) : number;
        number = _mm512_srai_epi32(_mm512_sub_epi32(number, digit[d]), 8);
    }
}

/* x row as digits: of each turn of so many columns (columns / step, digits, step) bytes, `gap` bytes after the last one's,
 * and its unit, unit_stride floats after the last one's. */
INLINE void split_digits(const float *x, int64_t k, int64_t columns, int64_t step, int digits, uint8_t *out, int64_t gap,
                         float *unit, int64_t unit_stride) {
    DigitScale next = digit_scale(x, least(columns, k), digits); /* one turn ahead, for others take its time */
    for (int64_t at = 0; at < k; out += gap, unit += unit_stride) {
        const int64_t end = least(at + columns, k);
        const DigitScale scale = next;
        next = digit_scale(x + end, least(columns, k - end), digits);
        for (; at < end; out += digits * step)
            for (int64_t i = 0; i < step; i += 16, at += 16) {
                __m512i digit[DIGITS_MOST];
                take_digits(x + at, scale.factor, digits, digit);
                for (int d = 0; d < digits; d++)
                    _mm_storeu_si128((__m128i *)(out + d * step + i), _mm512_cvtepi32_epi8(digit[d]));
            }
        *unit = scale.unit;
    }
}

/* Bytes of 2 * half elements in the order of spread nibbles: even elements first, then odd ones. */
INLINE void sort_nibbles(uint8_t *bytes, int64_t half) {
    uint8_t sorted[128];
    for (int64_t i = 0; i < half; i++) {
        sorted[i] = bytes[2 * i];
        sorted[half + i] = bytes[2 * i + 1];
    }
    memcpy(bytes, sorted, (size_t)(2 * half));
}

/* Sums of products with each digit as sums of products with the numbers, in units of the second digit: the first two are
 * joined as whole numbers. */
INLINE __m512 join_digits(int digits, __m512i first, __m512i second, __m512i lowest) {
    const __m512 joined = _mm512_cvtepi32_ps(_mm512_add_epi32(_mm512_slli_epi32(first, 8), second));
    return digits == 3 ? _mm512_fmadd_ps(_mm512_cvtepi32_ps(lowest), _mm512_set1_ps(LOWEST_DIGIT), joined) : joined;
}

/* ---- products of rows, in registers --------------------------------------------------------------------------- */

/* A packed unit of an x row: what joined sums start with, and of three digits what the lowest ones do, (16) int32 each; what
 * the second digit counts in, 64 bytes for one float; then for all columns that 64 bytes of codes hold d rows of digits. */
INLINE int64_t digit_unit_bytes(const Matrix *w, int digits) { return digits * (64 + round_up(unit_columns(w), 64)); }

INLINE int64_t digit_row_bytes(const Matrix *w, int digits) { return unit_count(w) * digit_unit_bytes(w, digits); }

INLINE void pack_digit_row_as(int digits, const Matrix *w, const float *x, uint8_t *packed) {
    const int64_t columns = unit_columns(w), step = w->format == INT4 ? 2 * DIGIT_STEP : DIGIT_STEP;
    const int64_t bytes = digit_unit_bytes(w, digits), before = 64 * digits; /* of a unit, and before its digits */
    const __m512i zero = _mm512_setzero_si512(), offset = _mm512_set1_epi8((char)code_offset(w));
    split_digits(x, w->k, columns, step, digits, packed + before, before, (float *)(packed + before - 64), bytes / 4);
    if (w->format == INT4)
        for (int64_t u = 0; u < unit_count(w); u++)
            for (int d = 0; d < digits; d++) sort_nibbles(packed + u * bytes + before + d * step, 64);
    for (int64_t k = 0; k < w->k; packed += bytes) {
        const uint8_t *digit = packed + before;
        __m512i sum[DIGITS_MOST] = {zero, zero, zero};
        for (const int64_t end = least(k + columns, w->k); k < end; k += step)
            for (int d = 0; d < digits; d++, digit += step)
                for (int64_t at = 0; at < step; at += DIGIT_STEP)
                    sum[d] = _mm512_dpbusd_epi32(sum[d], offset, _mm512_loadu_si512(digit + at));
        sum[1] = _mm512_add_epi32(_mm512_slli_epi32(sum[0], 8), sum[1]);
        for (int d = 1; d < digits; d++) _mm512_storeu_si512(packed + 64 * (d - 1), _mm512_sub_epi32(zero, sum[d]));
    }
}

static inline void pack_digit_row(const Matrix *w, const float *x, int digits, uint8_t *packed) {
    if (digits == 2) pack_digit_row_as(2, w, x, packed);
    else pack_digit_row_as(3, w, x, packed);
}

/* Groups of columns with a scale of their own that share a unit: int4 alone, whose instructions take 128 columns. */
INLINE int unit_groups(int format, const Matrix *w) {
    return format == INT4 && w->group_size < 128 ? (int)(128 / w->group_size) : 1;
}

/* Where the scales of a unit begin. */
INLINE int64_t unit_scale(int format, const Matrix *w, int64_t unit) {
    if (format == INT4) return unit * 128 / w->group_size;
    return w->group_size < DIGIT_MOST_UNIT ? unit : unit * DIGIT_MOST_UNIT / w->group_size;
}

/* Four sums in each quarter: of the quarters of v[0], v[1], v[2], v[3]. */
INLINE __m512i quarter_sums(const __m512i *v) {
    __m512i first = _mm512_add_epi32(_mm512_unpacklo_epi32(v[0], v[1]), _mm512_unpackhi_epi32(v[0], v[1]));
    __m512i second = _mm512_add_epi32(_mm512_unpacklo_epi32(v[2], v[3]), _mm512_unpackhi_epi32(v[2], v[3]));
    return _mm512_add_epi32(_mm512_unpacklo_epi64(first, second), _mm512_unpackhi_epi64(first, second));
}

/* The sums of eight vectors over group `group` of `groups`, from the quarters of the first four and of the last four. */
INLINE __m256i group_sums(__m512i low, __m512i high, int groups, int group) {
    if (groups == 4) {
        low = _mm512_maskz_compress_epi64((__mmask8)(3 << 2 * group), low);
        high = _mm512_maskz_compress_epi64((__mmask8)(3 << 2 * group), high);
        return _mm256_set_m128i(_mm512_castsi512_si128(high), _mm512_castsi512_si128(low));
    }
    __m512i half = _mm512_add_epi32(_mm512_shuffle_i32x4(low, high, 0x88), _mm512_shuffle_i32x4(low, high, 0xdd));
    half = _mm512_shuffle_i32x4(half, half, 0xd8); /* first halves of all eight, then their second halves */
    if (groups == 2) return group ? _mm512_extracti64x4_epi64(half, 1) : _mm512_castsi512_si256(half);
    return _mm256_add_epi32(_mm512_castsi512_si256(half), _mm512_extracti64x4_epi64(half, 1));
}

/* out[j * out_stride + i] = W[row + i] . x[j] for i < rows, j < x_rows. */
INLINE void digit_tile(int format, int digits, int rows, int x_rows, const Matrix *w, int64_t row,
                       const uint8_t *const *x, float *out, int64_t out_stride) {
    const uint8_t *codes = codes_of(w, row);
    const int64_t k_total = w->k, units = unit_count(w), width = unit_columns(w), ahead = rows * w->row_bytes;
    const int64_t step = format == INT4 ? 2 * DIGIT_STEP : DIGIT_STEP, unit_bytes = digit_unit_bytes(w, digits);
    const __m512i flip = code_flip(w), low = _mm512_set1_epi8(15);
    const int groups = unit_groups(format, w);
    __m256 sum = _mm256_setzero_ps(); /* of weight row i and x row j in lane i * x_rows + j */
    int64_t scale[DIGIT_ROWS];
    for (int i = 0; i < rows; i++) scale[i] = first_scale(w, row + i);
    for (int64_t u = 0; u < units; u++) {
        __m512i part[DIGIT_ROWS][DIGIT_X_ROWS][DIGITS_MOST];
        for (int j = 0; j < x_rows; j++)
            for (int d = 0; d < digits; d++) {
                __m512i start = d ? _mm512_loadu_si512(x[j] + u * unit_bytes + 64 * (d - 1)) : _mm512_setzero_si512();
                for (int i = 0; i < rows; i++) part[i][j][d] = start;
            }
        const int64_t end = least((u + 1) * width, k_total);
        for (int64_t k = u * width; k < end; k += step) {
            __m512i weight[DIGIT_ROWS], high[DIGIT_ROWS];
            for (int i = 0; i < rows; i++) {
                const uint8_t *from = codes + i * w->row_bytes + (format == INT4 ? k / 2 : k);
                prefetch(from + ahead); /* the rows that come next */
                weight[i] = _mm512_loadu_si512(from);
                if (format == INT4) {
                    high[i] = _mm512_and_si512(_mm512_srli_epi16(weight[i], 4), low);
                    weight[i] = _mm512_and_si512(weight[i], low);
                } else {
                    weight[i] = _mm512_xor_si512(weight[i], flip);
                }
            }
            for (int j = 0; j < x_rows; j++)
                for (int d = 0; d < digits; d++) {
                    const uint8_t *digit = x[j] + u * unit_bytes + digits * (64 + k - u * width) + d * step;
                    __m512i value = _mm512_loadu_si512(digit);
                    for (int i = 0; i < rows; i++) part[i][j][d] = add_quads(part[i][j][d], weight[i], value);
                    if (format != INT4) continue;
                    value = _mm512_loadu_si512(digit + DIGIT_STEP);
                    for (int i = 0; i < rows; i++) part[i][j][d] = add_quads(part[i][j][d], high[i], value);
                }
        }
        /* joined digits, then the lowest ones: of four products each, or of eight */
        const int half = rows * x_rows <= 4 ? 4 : 8;
        __m512i digit_sum[16];
        for (int i = 0; i < 2 * half; i++) digit_sum[i] = _mm512_setzero_si512();
        for (int i = 0; i < rows; i++)
            for (int j = 0; j < x_rows; j++) {
                digit_sum[i * x_rows + j] = _mm512_add_epi32(_mm512_slli_epi32(part[i][j][0], 8), part[i][j][1]);
                if (digits == 3) digit_sum[half + i * x_rows + j] = part[i][j][2];
            }
        __m512i quarter[4];
        for (int i = 0; i < half / 2; i++) quarter[i] = quarter_sums(digit_sum + 4 * i);
        for (int g = 0; g < groups; g++) {
            __m256 x_unit;
            for (int j = 0; j < x_rows; j++) {
                const __m256 of_x = _mm256_set1_ps(*(const float *)(x[j] + u * unit_bytes + 64 * (digits - 1)));
                x_unit = j ? _mm256_mask_blend_ps((__mmask8)((rows == 1 ? 1 : 1 | 1 << x_rows) << j), x_unit, of_x) : of_x;
            }
            __m256 value = _mm256_cvtepi32_ps(group_sums(quarter[0], quarter[1], groups, g)), lowest, factor;
            float of_row[DIGIT_ROWS];
            for (int i = 0; i < rows; i++) of_row[i] = scale_at(w, scale[i] + unit_scale(format, w, u) + g);
            if (half == 4) lowest = _mm256_castps128_ps256(_mm256_extractf128_ps(value, 1));
            else lowest = _mm256_cvtepi32_ps(group_sums(quarter[2], quarter[3], groups, g));
            if (digits == 3) value = _mm256_fmadd_ps(lowest, _mm256_set1_ps(LOWEST_DIGIT), value);
            if (rows == 1) factor = _mm256_set1_ps(of_row[0]);
            else if (rows == 2)
                factor = _mm256_mask_blend_ps((__mmask8)(((1 << x_rows) - 1) << x_rows), _mm256_set1_ps(of_row[0]),
                                              _mm256_set1_ps(of_row[1]));
            else factor = _mm256_castps128_ps256(_mm_setr_ps(of_row[0], of_row[1], of_row[2], of_row[3]));
            sum = _mm256_fmadd_ps(_mm256_mul_ps(factor, x_unit), value, sum);
        }
    }
    float sums[8];
    _mm256_storeu_ps(sums, sum);
    for (int j = 0; j < x_rows; j++)
        for (int i = 0; i < rows; i++) out[j * out_stride + i] = sums[i * x_rows + j];
}

INLINE void digit_rows_of(int format, int digits, int rows, int x_rows, const Matrix *w, int64_t first, int64_t last,
                          const uint8_t *const *x, float *out, int64_t out_stride) {
    int64_t n = first;
    for (; n + rows <= last; n += rows)
        digit_tile(format, digits, rows, x_rows, w, n, x, out + (n - first), out_stride);
    for (; n < last; n++) digit_tile(format, digits, 1, x_rows, w, n, x, out + (n - first), out_stride);
}

INLINE void digit_rows_as(int format, int digits, const Matrix *w, int64_t first, int64_t last, const uint8_t *packed,
                          int64_t x_rows, float *out, int64_t out_stride) {
    const int64_t bytes = digit_row_bytes(w, digits);
    for (int64_t j = 0; j < x_rows; j += DIGIT_X_ROWS, out += DIGIT_X_ROWS * out_stride) {
        const uint8_t *x[DIGIT_X_ROWS];
        for (int64_t c = 0; c < DIGIT_X_ROWS; c++) x[c] = packed + (j + c) * bytes;
        switch (x_rows - j) {
        case 1: digit_rows_of(format, digits, DIGIT_ROWS, 1, w, first, last, x, out, out_stride); break;
        case 2: digit_rows_of(format, digits, DIGIT_ROWS / 2, 2, w, first, last, x, out, out_stride); break;
        case 3: digit_rows_of(format, digits, DIGIT_ROWS / 2, 3, w, first, last, x, out, out_stride); break;
        default: digit_rows_of(format, digits, DIGIT_ROWS / 2, 4, w, first, last, x, out, out_stride);
        }
    }
}

/* out[j * out_stride + n - first] = W[n] . x[j] for rows [first, last) and packed rows x. */
static inline void digit_rows(const Matrix *w, int64_t first, int64_t last, const uint8_t *packed, int64_t x_rows,
                              int digits, float *out, int64_t out_stride) {
    if (w->format == INT4) {
        if (digits == 3) digit_rows_as(INT4, 3, w, first, last, packed, x_rows, out, out_stride);
        else digit_rows_as(INT4, 2, w, first, last, packed, x_rows, out, out_stride);
    } else {
        if (digits == 3) digit_rows_as(INT8, 3, w, first, last, packed, x_rows, out, out_stride);
        else digit_rows_as(INT8, 2, w, first, last, packed, x_rows, out, out_stride);
    }
}

#endif
#endif
