/* Products of weights with activations given as sums of bfloat16 terms: the way of prompts on CPUs that multiply bf16
 * faster than float. Included by linear and experts; knows matrices and float rows, nothing of threads.
 *
 *     AVX512-BF16   one term: vdpbf16ps, up to twice the rate of float. (More terms would be no faster than float.)
 *     AMX           one term or three: 16 x 16 x 32 tiles. Weight rows lie as tile A, packed activations as tile B.
 *
 * One term is `precision="fast"`: scales are folded into the bf16 weights. Three terms hold all 24 bits of a float:
 * weights stay what the codes say, exact in bf16, and scales multiply float sums of each group. (Two terms hold 16 bits
 * and move the logits of small models by up to 2.7e-4: docs/log.md.)
 * Sums run over k in fixed steps: a row does not depend on the rows multiplied with it.
 */
#ifndef DEEPZIG_BF16_H
#define DEEPZIG_BF16_H

#include "amx.h"

#define BF16_STEP 32 /* columns of K that one instruction takes */

#if defined(__AMX_BF16__)
#define BF16_TERMS 3 /* most terms that are worth it here */
#elif defined(__AVX512BF16__)
#define BF16_TERMS 1
#else
#define BF16_TERMS 0
#endif

INLINE int64_t bf16_width(int64_t k) { return (k + BF16_STEP - 1) / BF16_STEP * BF16_STEP; }

/* Terms to give activations for w, when the caller wants `wanted`, 1 or 3: 0 stands for plain float products. */
INLINE int bf16_terms(const Matrix *w, int wanted) {
    if (wanted > BF16_TERMS || wanted == 0) return 0;
    if (wanted == 1) return 1;
    const int exact = w->format == BF16 || w->format == FP8 || w->format == INT8 || w->format == INT4;
    return exact && (w->group_size >= w->k || w->group_size % BF16_STEP == 0) ? wanted : 0;
}

#if BF16_TERMS > 0

/* Up to BF16_STEP floats from p, zeros behind, as bf16; `rest` becomes what the rounding lost. */
INLINE __m256i bf16_round(const float *p, int64_t count, __m512 *rest) {
    __mmask16 mask = count >= 16 ? 0xffff : count <= 0 ? 0 : (__mmask16)((1u << count) - 1);
    __m512 value = _mm512_maskz_loadu_ps(mask, p);
    __m256i high = (__m256i)_mm512_cvtneps_pbh(value);
    *rest = _mm512_sub_ps(value, _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(high), 16)));
    return high;
}

/* Rows [first, last) of w as bf16, (last - first, bf16_width(K)); with their scales, or without. `row` has room for K. */
static inline void bf16_panel(const Matrix *w, int64_t first, int64_t last, int scaled, float *row, uint16_t *panel) {
    const int64_t width = bf16_width(w->k);
    Matrix plain = *w;
    if (!scaled) plain.scale_format = SCALE_NONE;
    __m512 rest;
    for (int64_t n = first; n < last; n++, panel += width) {
        dequantize_row(&plain, n, row);
        for (int64_t k = 0; k < width; k += 16)
            _mm256_storeu_si256((__m256i *)(panel + k), bf16_round(row + k, w->k - k, &rest));
    }
}

#endif

#if defined(__AMX_BF16__)

#define BF16_ROWS 32    /* panels are whole pairs of tiles */
#define BF16_COLUMNS 16 /* packed activations are whole tiles */

INLINE int64_t bf16_packed_size(int64_t columns, int64_t k, int terms) {
    return (columns + BF16_COLUMNS - 1) / BF16_COLUMNS * BF16_COLUMNS * bf16_width(k) * terms;
}

/* Packed activations: for each 16 columns, each 32 of k, each term a tile B [k / 2][column][k % 2]. */
static inline void bf16_pack(const float *const *x, int64_t columns, int64_t k, int terms, uint16_t *packed) {
    const int64_t width = bf16_width(k);
    for (int64_t j = 0; j < columns; j += BF16_COLUMNS)
        for (int64_t at = 0; at < width; at += BF16_STEP, packed += 512 * terms) {
            uint32_t *tile = (uint32_t *)packed;
            for (int64_t c = 0; c < BF16_COLUMNS; c++) {
                float rest[32] = {0};
                uint16_t rounded[32];
                if (j + c < columns)
                    memcpy(rest, x[j + c] + at, sizeof(float) * (size_t)(k - at < 32 ? k - at : 32));
                for (int term = 0; term < terms; term++) {
                    for (int half = 0; half < 32; half += 16) {
                        __m512 lost;
                        _mm256_storeu_si256((__m256i *)(rounded + half), bf16_round(rest + half, 16, &lost));
                        _mm512_storeu_ps(rest + half, lost);
                    }
                    for (int pair = 0; pair < 16; pair++)
                        memcpy(tile + 256 * term + 16 * pair + c, rounded + 2 * pair, 4);
                }
            }
        }
}

/* Tiles 0 to 3 (16 weight rows x 16 columns each) += the products over k in [first, last). */
INLINE void bf16_multiply(const uint16_t *panel, const uint16_t *x0, const uint16_t *x1, int64_t width, int64_t first,
                          int64_t last, int terms) {
    for (int64_t k = first; k < last; k += BF16_STEP) {
        _tile_loadd(4, panel + k, 2 * width);
        _tile_loadd(5, panel + 16 * width + k, 2 * width);
        for (int term = 0; term < terms; term++) {
            const int64_t at = (k / BF16_STEP * terms + term) * 512;
            _tile_loadd(6, x0 + at, 64);
            _tile_loadd(7, x1 + at, 64);
            _tile_dpbf16ps(0, 4, 6);
            _tile_dpbf16ps(1, 4, 7);
            _tile_dpbf16ps(2, 5, 6);
            _tile_dpbf16ps(3, 5, 7);
        }
    }
}

/* sum[32][32] += scale[row] * tiles 0 to 3, which become zero. */
INLINE void bf16_collect(float *sum, const float *scale) {
    float product[4][16][16];
    _tile_stored(0, product[0], 64);
    _tile_stored(1, product[1], 64);
    _tile_stored(2, product[2], 64);
    _tile_stored(3, product[3], 64);
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int i = 0; i < 32; i++)
        for (int half = 0; half < 2; half++) {
            float *row = sum + 32 * i + 16 * half;
            vstore(row, vload(row) + vset(scale[i]) * vload(product[i / 16 * 2 + half][i % 16]));
        }
}

/* 32 weight rows of a panel against 32 columns: sum[32][32]. */
static inline void bf16_square(const Matrix *w, int64_t row, const uint16_t *panel, const uint16_t *x0,
                               const uint16_t *x1, int terms, float *sum) {
    const int64_t width = bf16_width(w->k), group_size = terms > 1 && w->scale_format ? w->group_size : w->k;
    float scale[32];
    memset(sum, 0, 32 * 32 * sizeof(float));
    for (int64_t first = 0, g = 0; first < w->k; first += group_size, g++) {
        int64_t last = first + group_size < w->k ? first + group_size : width;
        for (int i = 0; i < 32; i++)
            scale[i] = terms > 1 && w->scale_format && row + i < w->n ? scale_at(w, first_scale(w, row + i) + g) : 1.0f;
        bf16_multiply(panel, x0, x1, width, first, last, terms);
        bf16_collect(sum, scale);
    }
}

/* out[j * out_stride + n - first] = W[n] . x[j] for rows [first, last), whose number a panel of BF16_ROWS multiples holds. */
static inline void bf16_block(const Matrix *w, int64_t first, int64_t last, const uint16_t *packed, int64_t columns,
                              int terms, float *out, int64_t out_stride, float *space) {
    const int64_t width = bf16_width(w->k), rows = (last - first + BF16_ROWS - 1) / BF16_ROWS * BF16_ROWS;
    const int64_t block = BF16_COLUMNS * width * terms;
    float sum[32 * 32];
    uint16_t *panel = (uint16_t *)(space + width);
    bf16_panel(w, first, last, terms == 1, space, panel);
    memset(panel + (last - first) * width, 0, (size_t)((rows - (last - first)) * width) * 2);
    amx_begin();
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int64_t j = 0; j < columns; j += 32) {
        const uint16_t *x0 = packed + j / 16 * block, *x1 = j + 16 < columns ? x0 + block : x0;
        const int64_t count = columns - j < 32 ? columns - j : 32;
        for (int64_t n = 0; n < last - first; n += 32) {
            bf16_square(w, first + n, panel + n * width, x0, x1, terms, sum);
            for (int64_t c = 0; c < count; c++)
                for (int64_t i = 0; i < 32 && n + i < last - first; i++) out[(j + c) * out_stride + n + i] = sum[32 * i + c];
        }
    }
    amx_end();
}

#elif defined(__AVX512BF16__)

#define BF16_ROWS 4

INLINE int64_t bf16_packed_size(int64_t columns, int64_t k, int terms) { return columns * bf16_width(k) * terms; }

/* Packed activations: rows of bf16_width(K). */
static inline void bf16_pack(const float *const *x, int64_t columns, int64_t k, int terms, uint16_t *packed) {
    const int64_t width = bf16_width(k);
    __m512 rest;
    for (int64_t j = 0; j < columns; j++)
        for (int64_t at = 0; at < width; at += 16)
            _mm256_storeu_si256((__m256i *)(packed + j * width + at), bf16_round(x[j] + at, k - at, &rest));
}

INLINE void bf16_tile(int rows, int columns, const uint16_t *w, const uint16_t *x, int64_t width, float *out,
                      int64_t out_stride) {
    __m512 sum[BF16_ROWS][TILE_COLUMNS];
    for (int i = 0; i < rows; i++)
        for (int j = 0; j < columns; j++) sum[i][j] = _mm512_setzero_ps();
    for (int64_t k = 0; k < width; k += BF16_STEP)
        for (int i = 0; i < rows; i++) {
            __m512bh weight = (__m512bh)_mm512_loadu_si512(w + i * width + k);
            for (int j = 0; j < columns; j++)
                sum[i][j] = _mm512_dpbf16_ps(sum[i][j], weight, (__m512bh)_mm512_loadu_si512(x + j * width + k));
        }
    for (int i = 0; i < rows; i++)
        for (int j = 0; j < columns; j++) out[j * out_stride + i] = vsum((vfloat)sum[i][j]);
}

INLINE void bf16_rows(int columns, const uint16_t *panel, int64_t count, const uint16_t *x, int64_t width, float *out,
                      int64_t out_stride) {
    int64_t n = 0;
    for (; n + BF16_ROWS <= count; n += BF16_ROWS)
        bf16_tile(BF16_ROWS, columns, panel + n * width, x, width, out + n, out_stride);
    for (; n < count; n++) bf16_tile(1, columns, panel + n * width, x, width, out + n, out_stride);
}

/* out[j * out_stride + n - first] = W[n] . x[j] for rows [first, last). */
static inline void bf16_block(const Matrix *w, int64_t first, int64_t last, const uint16_t *packed, int64_t columns,
                              int terms, float *out, int64_t out_stride, float *space) {
    const int64_t width = bf16_width(w->k);
    uint16_t *panel = (uint16_t *)(space + width);
    bf16_panel(w, first, last, 1, space, panel);
    int64_t j = 0;
    for (; j + TILE_COLUMNS <= columns; j += TILE_COLUMNS)
        bf16_rows(TILE_COLUMNS, panel, last - first, packed + j * width, width, out + j * out_stride, out_stride);
    for (; j < columns; j++)
        bf16_rows(1, panel, last - first, packed + j * width, width, out + j * out_stride, out_stride);
}

#else /* no bf16 arithmetic: bf16_terms is 0, these are never reached */

#define BF16_ROWS 1
INLINE int64_t bf16_packed_size(int64_t columns, int64_t k, int terms) { return 0; }
static inline void bf16_pack(const float *const *x, int64_t columns, int64_t k, int terms, uint16_t *packed) {}
static inline void bf16_block(const Matrix *w, int64_t first, int64_t last, const uint16_t *packed, int64_t columns,
                              int terms, float *out, int64_t out_stride, float *space) {}

#endif

/* Floats of `space` that bf16_block needs for `rows` weight rows. */
INLINE int64_t bf16_space(int64_t rows, int64_t k) {
    return bf16_width(k) + ((rows + BF16_ROWS - 1) / BF16_ROWS * BF16_ROWS * bf16_width(k) + 1) / 2;
}

#endif
