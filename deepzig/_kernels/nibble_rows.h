/* int4 weights against rows of x that are whole numbers of three digits, in registers: decoding on CPUs with AVX2 and nothing
 * above it, where to make floats of nibbles takes longer than to multiply them.
 *
 * Included by ways.h. Knows matrices and float rows, nothing of threads. An activation is three digits of 8 bits with sign, of
 * whole parts of its turn's largest, as in digits.h: rounding loses 2^-24 of that. Four products of a nibble with a digit
 * fit 16 bits. Sums of a turn are whole numbers without error; those of the upper two digits are joined, and as floats, times
 * scale and unit, they are added in order, the lowest digit's apart until the end.
 */
#ifndef DEEPZIG_NIBBLE_ROWS_H
#define DEEPZIG_NIBBLE_ROWS_H

#include "digits.h"
#include "word_lanes.h"

#define NIBBLE_STEP 64  /* columns that are multiplied at once */
#define NIBBLE_ROWS 4   /* weight rows of a register tile */
#define NIBBLE_X_ROWS 2
#define NIBBLE_SCALES 8 /* of a weight row, read at once */
#define NIBBLE_DIGITS 3

#if defined(__AVX2__) && !defined(__AVX512F__)
#define HAS_NIBBLE_ROWS 1
#else
#define HAS_NIBBLE_ROWS 0
#endif

/* Whether decoding takes them: turns are whole steps, or two make one. */
INLINE int takes_nibble_rows(const Matrix *w) {
    return HAS_NIBBLE_ROWS && w->format == INT4 && w->k % NIBBLE_STEP == 0 && takes_words(w);
}

#if HAS_NIBBLE_ROWS

/* A packed x row: for each step its three digits, of even columns, then of odd ones (3, 2, 32); then what a turn's sums start
 * with, the joined ones of all weight rows of a tile, then the lowest ones (turns, 8) int32; then the unit of each turn. */
INLINE int64_t nibble_row_bytes(const Matrix *w) {
    return round_up(NIBBLE_DIGITS * w->k + 36 * parts_of(w->k, word_turn(w)), 64);
}

/* The digits of 32 x, the highest first, in order. */
INLINE void take_32_digits(const float *x, float factor, __m256i *digit) {
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    __m256i number[4];
    for (int i = 0; i < 4; i++) number[i] = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x + 8 * i), _mm256_set1_ps(factor)));
    for (int d = NIBBLE_DIGITS - 1; d >= 0; d--) {
        __m256i of[4];
        for (int i = 0; i < 4; i++) {
            of[i] = d ? _mm256_srai_epi32(_mm256_slli_epi32(number[i], 24), 24) : number[i];
            number[i] = _mm256_srai_epi32(_mm256_sub_epi32(number[i], of[i]), 8);
        }
        const __m256i bytes = _mm256_packs_epi16(_mm256_packs_epi32(of[0], of[1]), _mm256_packs_epi32(of[2], of[3]));
        digit[d] = _mm256_permutevar8x32_epi32(bytes, order);
    }
}

INLINE int32_t sum_of_lanes(__m256i v) {
    __m128i four = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    four = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0x4e));
    return _mm_cvtsi128_si32(_mm_add_epi32(four, _mm_shuffle_epi32(four, 0xb1)));
}

static inline void pack_nibble_row(const Matrix *w, const float *x, uint8_t *packed) {
    const int64_t turn = word_turn(w);
    const float most = 127 << 16;
    const __m256i eights = _mm256_set1_epi8(8), ones = _mm256_set1_epi16(1), evens = _mm256_set1_epi16(0xff);
    int32_t *start = (int32_t *)(packed + NIBBLE_DIGITS * w->k);
    float *unit = (float *)(start + 8 * parts_of(w->k, turn));
    for (int64_t k = 0, end; k < w->k; k = end, start += 8, unit++) {
        end = least(k + turn, w->k);
        float size = largest_of(F32, (const uint8_t *)(x + k), end - k);
        if (size < 0x1p-100f) size = 0x1p-100f; /* or the factor is no float */
        __m256i sum[NIBBLE_DIGITS] = {_mm256_setzero_si256(), _mm256_setzero_si256(), _mm256_setzero_si256()};
        for (int64_t at = k; at < end; at += 32) {
            __m256i digit[NIBBLE_DIGITS];
            uint8_t *to = packed + NIBBLE_DIGITS * (at / NIBBLE_STEP * NIBBLE_STEP) + at % NIBBLE_STEP / 2;
            take_32_digits(x + at, most / size, digit);
            for (int d = 0; d < NIBBLE_DIGITS; d++, to += 64) {
                const __m256i even = _mm256_and_si256(digit[d], evens), odd = _mm256_srli_epi16(digit[d], 8);
                const __m256i sorted = _mm256_permute4x64_epi64(_mm256_packus_epi16(even, odd), 0xd8);
                _mm_storeu_si128((__m128i *)to, _mm256_castsi256_si128(sorted));
                _mm_storeu_si128((__m128i *)(to + 32), _mm256_extracti128_si256(sorted, 1));
                sum[d] = _mm256_add_epi32(sum[d], _mm256_madd_epi16(_mm256_maddubs_epi16(eights, digit[d]), ones));
            }
        }
        for (int i = 0; i < NIBBLE_ROWS; i++) {
            start[i] = -256 * sum_of_lanes(sum[0]) - sum_of_lanes(sum[1]);
            start[NIBBLE_ROWS + i] = -sum_of_lanes(sum[2]);
        }
        *unit = size / most / LOWEST_DIGIT;
    }
}

/* The sums of eight vectors: of their lower halves, and of their upper halves. */
INLINE void half_sums(const __m256i *v, __m256i *lower, __m256i *upper) {
    __m256i two[4], four[2];
    for (int i = 0; i < 4; i++)
        two[i] = _mm256_add_epi32(_mm256_unpacklo_epi32(v[2 * i], v[2 * i + 1]), _mm256_unpackhi_epi32(v[2 * i], v[2 * i + 1]));
    for (int i = 0; i < 2; i++)
        four[i] = _mm256_add_epi32(_mm256_unpacklo_epi64(two[2 * i], two[2 * i + 1]),
                                   _mm256_unpackhi_epi64(two[2 * i], two[2 * i + 1]));
    *lower = _mm256_permute2x128_si256(four[0], four[1], 0x20);
    *upper = _mm256_permute2x128_si256(four[0], four[1], 0x31);
}

/* The products of 64 codes with packed x rows: of the upper two digits, and of the lowest. */
INLINE void nibble_sums(int x_rows, const uint8_t *codes, const uint8_t *const *x, __m256i (*sum)[2]) {
    const __m256i low = _mm256_set1_epi8(15), ones = _mm256_set1_epi16(1), upper = _mm256_set1_epi16(256);
    const __m256i code = load_bytes(codes);
    const __m256i even = _mm256_and_si256(code, low), odd = _mm256_and_si256(_mm256_srli_epi16(code, 4), low);
    for (int j = 0; j < x_rows; j++) {
        __m256i part[NIBBLE_DIGITS];
        for (int d = 0; d < NIBBLE_DIGITS; d++)
            part[d] = _mm256_add_epi16(_mm256_maddubs_epi16(even, load_bytes(x[j] + 64 * d)),
                                       _mm256_maddubs_epi16(odd, load_bytes(x[j] + 64 * d + 32)));
        sum[j][0] = _mm256_add_epi32(_mm256_madd_epi16(part[0], upper), _mm256_madd_epi16(part[1], ones));
        sum[j][1] = _mm256_madd_epi16(part[2], ones);
    }
}

/* The same of a tile's weight rows, added over the lower halves of the lanes and over the upper: half[j], each with the upper
 * digits' sums of all weight rows, then the lowest one's. */
INLINE void tile_sums(int rows, int x_rows, const uint8_t *codes, int64_t row_bytes, const uint8_t *const *x,
                      __m256i (*half)[2]) {
    __m256i part[NIBBLE_X_ROWS][2 * NIBBLE_ROWS];
    for (int i = 0; i < NIBBLE_ROWS; i++) {
        __m256i of_row[NIBBLE_X_ROWS][2];
        if (i < rows) nibble_sums(x_rows, codes + i * row_bytes, x, of_row);
        for (int j = 0; j < x_rows; j++)
            for (int p = 0; p < 2; p++) part[j][NIBBLE_ROWS * p + i] = i < rows ? of_row[j][p] : _mm256_setzero_si256();
    }
    for (int j = 0; j < x_rows; j++) half_sums(part[j], half[j], half[j] + 1);
}

/* The next NIBBLE_SCALES scales, or those that are left, of a tile's weight rows, from index scale[i] on; of rows that it
 * lacks: 0. The usual ones are turned as vectors. */
static void take_scales(const Matrix *w, int rows, const int64_t *scale, int64_t left, float (*factor)[NIBBLE_ROWS]) {
    if (rows == NIBBLE_ROWS && left >= NIBBLE_SCALES && w->scale_format == SCALE_BF16) {
        __m128i row[NIBBLE_ROWS], pair[4];
        for (int i = 0; i < NIBBLE_ROWS; i++) row[i] = _mm_loadu_si128((const __m128i *)((const uint16_t *)w->scale + scale[i]));
        for (int i = 0; i < 2; i++) {
            pair[2 * i] = _mm_unpacklo_epi16(row[2 * i], row[2 * i + 1]);
            pair[2 * i + 1] = _mm_unpackhi_epi16(row[2 * i], row[2 * i + 1]);
        }
        for (int i = 0; i < 4; i++) {
            const __m128i low = pair[i / 2], high = pair[2 + i / 2];
            const __m128i two = i % 2 ? _mm_unpackhi_epi32(low, high) : _mm_unpacklo_epi32(low, high);
            _mm_storeu_si128((__m128i *)factor[2 * i], _mm_unpacklo_epi16(_mm_setzero_si128(), two));
            _mm_storeu_si128((__m128i *)factor[2 * i + 1], _mm_unpackhi_epi16(_mm_setzero_si128(), two));
        }
        return;
    }
    for (int64_t g = 0; g < least(left, NIBBLE_SCALES); g++)
        for (int i = 0; i < NIBBLE_ROWS; i++) factor[g][i] = i < rows ? scale_at(w, scale[i] + g) : 0;
}

/* out[j * out_stride + i] = W[row + i] . x[j] for i < rows, j < x_rows; turn: word_turn(w), as a constant. */
INLINE void nibble_tile(int turn, int rows, int x_rows, const Matrix *w, int64_t row, const uint8_t *packed, float *out,
                        int64_t out_stride) {
    const int64_t bytes = nibble_row_bytes(w), groups = parts_of(w->k, w->group_size), ahead = rows * w->row_bytes;
    const uint8_t *codes = codes_of(w, row);
    const int32_t *start = (const int32_t *)(packed + NIBBLE_DIGITS * w->k);
    const float *unit = (const float *)(start + 8 * parts_of(w->k, turn));
    float factor[NIBBLE_SCALES][NIBBLE_ROWS];
    __m256 sum[NIBBLE_X_ROWS];     /* of the upper digits for each weight row, then of the lowest */
    __m256i before[NIBBLE_X_ROWS]; /* what the first step of a turn of two gives */
    for (int j = 0; j < x_rows; j++) sum[j] = _mm256_setzero_ps();
    for (int j = 0; j < x_rows; j++) before[j] = _mm256_setzero_si256();
    int64_t scale[NIBBLE_ROWS], group = -1, left = 0;
    for (int i = 0; i < rows; i++) scale[i] = first_scale(w, row + i);
    for (int64_t k = 0; k < w->k; k += NIBBLE_STEP) {
        __m256i half[NIBBLE_X_ROWS][2];
        const uint8_t *x[NIBBLE_X_ROWS];
        for (int j = 0; j < x_rows; j++) x[j] = packed + j * bytes + NIBBLE_DIGITS * k;
        if (k % 128 == 0) /* bytes of the rows that come next */
            for (int i = 0; i < rows; i++) prefetch(codes + i * w->row_bytes + k / 2 + ahead);
        tile_sums(rows, x_rows, codes + k / 2, w->row_bytes, x, half);
        if (turn >= NIBBLE_STEP)
            for (int j = 0; j < x_rows; j++) half[j][0] = _mm256_add_epi32(half[j][0], half[j][1]);
        if (turn > NIBBLE_STEP) {
            for (int j = 0; j < x_rows; j++) half[j][0] = before[j] = _mm256_add_epi32(before[j], half[j][0]);
            if (k % turn == 0 && k + NIBBLE_STEP < w->k) continue;
            for (int j = 0; j < x_rows; j++) before[j] = _mm256_setzero_si256();
        }
        for (int t = 0; t < (turn < NIBBLE_STEP ? 2 : 1); t++, start += 8, unit++, left -= turn) {
            if (left <= 0) {
                left = w->group_size;
                if (++group % NIBBLE_SCALES == 0) {
                    take_scales(w, rows, scale, groups - group, factor);
                    for (int i = 0; i < rows; i++) scale[i] += NIBBLE_SCALES;
                }
            }
            const __m256 of_rows = _mm256_broadcast_ps((const __m128 *)factor[group % NIBBLE_SCALES]);
            for (int j = 0; j < x_rows; j++) {
                const __m256i from = load_bytes((const uint8_t *)start + j * bytes);
                const __m256 unit_of_x = _mm256_broadcast_ss((const float *)((const uint8_t *)unit + j * bytes));
                sum[j] += of_rows * unit_of_x * _mm256_cvtepi32_ps(_mm256_add_epi32(half[j][t], from));
            }
        }
    }
    for (int j = 0; j < x_rows; j++) {
        float sums[NIBBLE_ROWS];
        _mm_storeu_ps(sums, _mm256_castps256_ps128(sum[j]) + _mm256_extractf128_ps(sum[j], 1) * LOWEST_DIGIT);
        memcpy(out + j * out_stride, sums, (size_t)rows * sizeof(float));
    }
}

INLINE void nibble_rows_of(int turn, int x_rows, const Matrix *w, int64_t first, int64_t last, const uint8_t *packed,
                           float *out, int64_t out_stride) {
    int64_t n = first;
    for (; n + NIBBLE_ROWS <= last; n += NIBBLE_ROWS)
        nibble_tile(turn, NIBBLE_ROWS, x_rows, w, n, packed, out + (n - first), out_stride);
    for (; n < last; n++) nibble_tile(turn, 1, x_rows, w, n, packed, out + (n - first), out_stride);
}

INLINE void nibble_rows_as(int turn, const Matrix *w, int64_t first, int64_t last, const uint8_t *packed, int64_t x_rows,
                           float *out, int64_t out_stride) {
    for (int64_t j = 0; j < x_rows; j += NIBBLE_X_ROWS) {
        const uint8_t *x = packed + j * nibble_row_bytes(w);
        if (x_rows - j > 1) nibble_rows_of(turn, 2, w, first, last, x, out + j * out_stride, out_stride);
        else nibble_rows_of(turn, 1, w, first, last, x, out + j * out_stride, out_stride);
    }
}

/* out[j * out_stride + n - first] = W[n] . x[j] for rows [first, last) and packed rows x. */
static inline void nibble_rows(const Matrix *w, int64_t first, int64_t last, const uint8_t *packed, int64_t x_rows,
                               float *out, int64_t out_stride) {
    switch (word_turn(w)) {
    case 32: nibble_rows_as(32, w, first, last, packed, x_rows, out, out_stride); break;
    case 64: nibble_rows_as(64, w, first, last, packed, x_rows, out, out_stride); break;
    default: nibble_rows_as(WORD_TURN, w, first, last, packed, x_rows, out, out_stride);
    }
}

#endif
#endif
