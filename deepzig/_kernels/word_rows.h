/* int4 weights against few rows of x, both as whole numbers of 16 bits, in registers: decoding on CPUs with AVX2 and nothing
 * above it, where to make floats of nibbles takes twice as long as to multiply words.
 *
 * Included by ways.h. Knows matrices and float rows, nothing of threads. Each activation is two words, first + second / 2^15,
 * times a power of two that a turn (word_lanes.h) shares: 29 bits of the turn's largest, where a float has 24 of its own. Sums
 * of a turn are whole numbers without error; as floats, times scale and unit, they are added in order, those of first words and
 * of second ones apart, which meet at the end. word_lanes.h does the same for many rows, with the same bits.
 */
#ifndef DEEPZIG_WORD_ROWS_H
#define DEEPZIG_WORD_ROWS_H

#include "word_lanes.h"

#define WORD_TILE_STEP 64 /* columns whose nibbles are spread at once: four to a word */
#define WORD_TILE_ROWS 4  /* weight rows of a register tile */
#define WORD_TILE_X_ROWS 2

#if defined(__AVX2__) && !defined(__AVX512F__)
#define HAS_WORD_ROWS 1
#else
#define HAS_WORD_ROWS 0
#endif

/* Whether decoding takes words: turns are whole steps, or two make one. */
INLINE int takes_word_rows(const Matrix *w) {
    return HAS_WORD_ROWS && w->format == INT4 && w->k % WORD_TILE_STEP == 0 && takes_words(w);
}

#if HAS_WORD_ROWS

/* `width` floats as two words each, x = (first + second * SECOND_WORD) * unit, without error for those above 2^-5 of the
 * largest. Returns the unit, a power of two. */
INLINE float split_words(const float *x, int64_t width, int16_t *first, int16_t *second) {
    const float size = largest_of(F32, (const uint8_t *)x, width);
    uint32_t exponent;
    memcpy(&exponent, &size, 4);
    exponent = exponent >> 23 > 14 ? exponent >> 23 : 14; /* or the factor is no float */
    const vfloat factor = vset(bits_to_float((267 - exponent) << 23)); /* the largest: 2^13 to 2^14 */
    for (int64_t k = 0; k < width; k += 16) {
        const __m256 low = (__m256)(vload(x + k) * factor), high = (__m256)(vload(x + k + 8) * factor);
        const __m256 rest_low = _mm256_sub_ps(low, _mm256_round_ps(low, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
        const __m256 rest_high = _mm256_sub_ps(high, _mm256_round_ps(high, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
        _mm256_storeu_si256((__m256i *)(first + k), words_of(low, high, 1));
        _mm256_storeu_si256((__m256i *)(second + k), words_of(rest_low, rest_high, 1 / SECOND_WORD));
    }
    return size == size ? bits_to_float((exponent - 13) << 23) : NAN;
}

/* x for word_lanes: a packed row of first words, then one of second words, which count the same unit. */
static inline void pack_word_pair(const Matrix *w, const float *x, uint8_t *packed) {
    const int64_t turn = word_turn(w);
    uint8_t *second = packed + word_lane_row_bytes(w);
    float *unit = (float *)(packed + 2 * w->k), *same = (float *)(second + 2 * w->k);
    for (int64_t k = 0; k < w->k; k += turn) {
        const int64_t width = least(w->k - k, turn);
        *unit = *same++ = split_words(x + k, width, (int16_t *)packed + k, (int16_t *)second + k);
        unit++;
    }
}

/* A packed x row for word_rows: for each step its first and its second words, sorted; then what a turn's sums start with, those
 * of first words of all weight rows of a tile, then of second (turns, 8) int32; then the unit of each turn. */
INLINE int64_t word_row_bytes(const Matrix *w) {
    return round_up(4 * w->k + 36 * parts_of(w->k, word_turn(w)), 64);
}

/* 64 words in the order of nibbles that are spread: every fourth from 0, from 1, from 2, from 3 on. */
INLINE void sort_words(const int16_t *words, __m256i *sorted) {
    const __m256i apart = _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 1, 8, 9, 2, 3, 10, 11, 4, 5, 12, 13, 6, 7, 14, 15));
    __m256i v[4], pair[4];
    for (int i = 0; i < 4; i++) {
        const __m256i eights = _mm256_loadu2_m128i((const __m128i *)(words + 32 + 8 * i), (const __m128i *)(words + 8 * i));
        v[i] = _mm256_shuffle_epi8(eights, apart);
    }
    for (int i = 0; i < 2; i++) {
        pair[i] = _mm256_unpacklo_epi32(v[2 * i], v[2 * i + 1]);
        pair[2 + i] = _mm256_unpackhi_epi32(v[2 * i], v[2 * i + 1]);
    }
    for (int i = 0; i < 2; i++) {
        _mm256_storeu_si256(sorted + 2 * i, _mm256_unpacklo_epi64(pair[2 * i], pair[2 * i + 1]));
        _mm256_storeu_si256(sorted + 2 * i + 1, _mm256_unpackhi_epi64(pair[2 * i], pair[2 * i + 1]));
    }
}

static inline void pack_word_row(const Matrix *w, const float *x, uint8_t *packed) {
    const int64_t turn = word_turn(w), turns = parts_of(w->k, turn);
    int32_t *start = (int32_t *)(packed + 4 * w->k);
    float *unit = (float *)(start + 8 * turns);
    int16_t words[2][WORD_TURN];
    for (int64_t k = 0, width; k < w->k; k += width) { /* a turn, or two that share a step */
        width = turn < WORD_TILE_STEP ? WORD_TILE_STEP : least(w->k - k, turn);
        for (int64_t at = 0; at < width; at += turn, unit++) {
            const int64_t end = least(at + turn, width);
            *unit = split_words(x + k + at, end - at, words[0] + at, words[1] + at);
            for (int part = 0; part < 2; part++) {
                int32_t sum = 0;
                for (int64_t i = at; i < end; i++) sum += words[part][i];
                for (int i = 0; i < WORD_TILE_ROWS; i++) *start++ = -8 * sum;
            }
        }
        for (int64_t at = 0; at < width; at += WORD_TILE_STEP)
            for (int part = 0; part < 2; part++)
                sort_words(words[part] + at, (__m256i *)(packed + 4 * (k + at) + 2 * WORD_TILE_STEP * part));
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

/* The products of `steps` times 64 codes with packed x rows: of their first words, in each lane, and of their second. */
INLINE void word_sums(int steps, int x_rows, const uint8_t *codes, const uint8_t *const *x, __m256i (*sum)[2]) {
    const __m256i low = _mm256_set1_epi16(15);
    for (int j = 0; j < x_rows; j++) sum[j][0] = sum[j][1] = _mm256_setzero_si256();
    for (int step = 0; step < steps; step++) {
        const __m256i code = load_bytes(codes + step * WORD_TILE_STEP / 2);
        const __m256i nibble[4] = {_mm256_and_si256(code, low), _mm256_and_si256(_mm256_srli_epi16(code, 4), low),
                                   _mm256_and_si256(_mm256_srli_epi16(code, 8), low), _mm256_srli_epi16(code, 12)};
        for (int j = 0; j < x_rows; j++)
            for (int part = 0; part < 2; part++)
                for (int n = 0; n < 4; n++) {
                    const vint words = (vint)load_bytes(x[j] + 32 * (8 * step + 4 * part + n));
                    sum[j][part] = (__m256i)add_pairs((vint)sum[j][part], (vint)nibble[n], words);
                }
    }
}

/* out[j * out_stride + i] = W[row + i] . x[j] for i < rows, j < x_rows; scale_format: that of w, as a constant, or each scale
 * costs as much as its products. */
INLINE void word_tile(int scale_format, int rows, int x_rows, const Matrix *w, int64_t row, const uint8_t *packed,
                      float *out, int64_t out_stride) {
    const int64_t turn = word_turn(w), turns = parts_of(w->k, turn), ahead = rows * w->row_bytes;
    const int64_t bytes = word_row_bytes(w);
    const uint8_t *codes = codes_of(w, row);
    const int32_t *start = (const int32_t *)(packed + 4 * w->k);
    const float *unit = (const float *)(start + 8 * turns);
    Matrix same = *w;
    same.scale_format = scale_format;
    __m256 sum[WORD_TILE_X_ROWS]; /* of first words for each weight row, then of second ones */
    for (int j = 0; j < x_rows; j++) sum[j] = _mm256_setzero_ps();
    int64_t scale[WORD_TILE_ROWS], left = w->group_size;
    for (int i = 0; i < rows; i++) scale[i] = first_scale(w, row + i);
    for (int64_t k = 0, width; k < w->k; k += width) {
        width = turn == WORD_TURN && w->k - k >= WORD_TURN ? WORD_TURN : WORD_TILE_STEP;
        __m256i part[WORD_TILE_X_ROWS][2 * WORD_TILE_ROWS], half[WORD_TILE_X_ROWS][2];
        const uint8_t *x[WORD_TILE_X_ROWS];
        for (int j = 0; j < x_rows; j++) x[j] = packed + j * bytes + 4 * k;
        if (k % 128 == 0) /* bytes of the rows that come next */
            for (int i = 0; i < rows; i++) prefetch(codes + i * w->row_bytes + k / 2 + ahead);
        for (int i = 0; i < WORD_TILE_ROWS; i++) {
            __m256i of_row[WORD_TILE_X_ROWS][2];
            if (i >= rows) memset(of_row, 0, sizeof of_row);
            else if (width == WORD_TURN) word_sums(2, x_rows, codes + i * w->row_bytes + k / 2, x, of_row);
            else word_sums(1, x_rows, codes + i * w->row_bytes + k / 2, x, of_row);
            for (int j = 0; j < x_rows; j++) {
                part[j][i] = of_row[j][0];
                part[j][WORD_TILE_ROWS + i] = of_row[j][1];
            }
        }
        for (int j = 0; j < x_rows; j++) half_sums(part[j], half[j], half[j] + 1);
        if (turn >= WORD_TILE_STEP)
            for (int j = 0; j < x_rows; j++) half[j][0] = _mm256_add_epi32(half[j][0], half[j][1]);
        for (int t = 0; t < (turn < WORD_TILE_STEP ? 2 : 1); t++, start += 8, unit++) {
            float factor[WORD_TILE_ROWS] = {0};
            for (int i = 0; i < rows; i++) factor[i] = scale_at(&same, scale[i]);
            const __m256 of_rows = _mm256_broadcast_ps((const __m128 *)factor);
            for (int j = 0; j < x_rows; j++) {
                const __m256i from = load_bytes((const uint8_t *)start + j * bytes);
                const __m256 unit_of_x = _mm256_broadcast_ss((const float *)((const uint8_t *)unit + j * bytes));
                const __m256 value = _mm256_cvtepi32_ps(_mm256_add_epi32(half[j][t], from));
                sum[j] += of_rows * unit_of_x * value; /* with or without FMA as in word_lane_tile */
            }
            left -= turn;
            for (int i = 0; left <= 0 && i < rows; i++) scale[i]++;
            if (left <= 0) left = w->group_size;
        }
    }
    for (int j = 0; j < x_rows; j++) {
        float sums[WORD_TILE_ROWS];
        const __m128 second = _mm256_extractf128_ps(sum[j], 1);
        _mm_storeu_ps(sums, _mm256_castps256_ps128(sum[j]) + second * SECOND_WORD);
        memcpy(out + j * out_stride, sums, (size_t)rows * sizeof(float));
    }
}

INLINE void word_rows_of(int scale_format, int x_rows, const Matrix *w, int64_t first, int64_t last,
                         const uint8_t *packed, float *out, int64_t out_stride) {
    int64_t n = first;
    for (; n + WORD_TILE_ROWS <= last; n += WORD_TILE_ROWS)
        word_tile(scale_format, WORD_TILE_ROWS, x_rows, w, n, packed, out + (n - first), out_stride);
    for (; n < last; n++) word_tile(scale_format, 1, x_rows, w, n, packed, out + (n - first), out_stride);
}

INLINE void word_rows_as(int scale_format, const Matrix *w, int64_t first, int64_t last, const uint8_t *packed,
                         int64_t x_rows, float *out, int64_t out_stride) {
    for (int64_t j = 0; j < x_rows; j += WORD_TILE_X_ROWS) {
        const uint8_t *x = packed + j * word_row_bytes(w);
        if (x_rows - j > 1) word_rows_of(scale_format, 2, w, first, last, x, out + j * out_stride, out_stride);
        else word_rows_of(scale_format, 1, w, first, last, x, out + j * out_stride, out_stride);
    }
}

/* out[j * out_stride + n - first] = W[n] . x[j] for rows [first, last) and packed rows x. */
static inline void word_rows(const Matrix *w, int64_t first, int64_t last, const uint8_t *packed, int64_t x_rows,
                             float *out, int64_t out_stride) {
    switch (w->scale_format) {
    case SCALE_F32: word_rows_as(SCALE_F32, w, first, last, packed, x_rows, out, out_stride); break;
    case SCALE_F16: word_rows_as(SCALE_F16, w, first, last, packed, x_rows, out, out_stride); break;
    case SCALE_BF16: word_rows_as(SCALE_BF16, w, first, last, packed, x_rows, out, out_stride); break;
    default: word_rows_as(SCALE_NONE, w, first, last, packed, x_rows, out, out_stride);
    }
}

#endif
#endif
