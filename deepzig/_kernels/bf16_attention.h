/* What attention.h needs of bf16: packing, products summed in float, and a softmax whose probabilities are bf16. For
 * `precision="fast"`.
 *
 * Panels hold two steps of k side by side, [k / 2][column][2]: what a tile B of AMX is, and what vdpbf16ps multiplies with
 * a broadcast pair.
 *
 * Rotary parts of keys are two bf16 numbers each, what the first rounds off in the second, and meet the query's twice: they
 * are large and differ by little from key to key, so that their rounding alone would move the model by more than all
 * others together (docs/log.md).
 */
#ifndef DEEPZIG_BF16_ATTENTION_H
#define DEEPZIG_BF16_ATTENTION_H

#include "bf16.h"

/* The running maximum with what was found; returns what earlier sums are to be multiplied with. shift: what to subtract of
 * scores, 0 as long as nothing but -inf was seen. */
INLINE float move_maximum(float found, float *running_max, float *shift) {
    const float before = *running_max, most = found > before ? found : before;
    *shift = most > -INFINITY ? most : 0.0f;
    *running_max = most;
    return most == before ? 1.0f : expf(before - *shift);
}

#if defined(__AVX512BF16__)
#define HAS_BF16_ATTENTION 1
#else
#define HAS_BF16_ATTENTION 0
#endif

#if HAS_BF16_ATTENTION

INLINE __mmask16 first_lanes(int64_t count) {
    return (__mmask16)_bzhi_u32(0xffff, count < 0 ? 0 : count < 16 ? (unsigned)count : 16);
}

/* Floats of `space` that bf16_pack_keys needs. */
INLINE int64_t bf16_pack_space(int64_t width) { return 9 * width; }

/* As float_pack_keys, into panels of bf16_width(nope + 2 rope) steps. */
static inline void bf16_pack_keys(const float *rows, int64_t stride, int64_t nope, const float *rope_rows, int64_t rope,
                                  int64_t n_keys, int64_t padded_keys, uint16_t *panel, float *space) {
    const int64_t width = bf16_width(nope + 2 * rope);
    float *row = space, *rounded = space + width; /* (width), (16, width) bf16 */
    memset(row, 0, (size_t)width * 4);
    for (int64_t first = 0; first < padded_keys; first += 16) {
        for (int64_t s = first; s < first + 16; s++) {
            uint16_t *key = (uint16_t *)rounded + (s - first) * width;
            if (s >= n_keys) {
                memset(key, 0, (size_t)width * 2);
                continue;
            }
            memcpy(row, rows + s * stride, (size_t)nope * 4);
            memcpy(row + nope, rope_rows + s * rope, (size_t)rope * 4);
            for (int64_t p = 0; p < rope; p += 16) {
                __m512 rest;
                bf16_round(row + nope + p, rope - p, &rest);
                _mm512_mask_storeu_ps(row + nope + rope + p, first_lanes(rope - p), rest);
            }
            for (int64_t d = 0; d < width; d += 32)
                _mm512_storeu_si512(
                    key + d, (__m512i)_mm512_cvtne2ps_pbh(_mm512_loadu_ps(row + d + 16), _mm512_loadu_ps(row + d)));
        }
        for (int64_t d = 0; d < width; d += 32, panel += 512) { /* pairs of bf16 change places as floats do */
            vfloat key[16], column[16];
            for (int i = 0; i < 16; i++) key[i] = vload(rounded + (i * width + d) / 2);
            transpose(key, column);
            for (int i = 0; i < 16; i++) vstore((float *)panel + 16 * i, column[i]);
        }
    }
}

/* As float_pack_values. */
static inline void bf16_pack_values(const float *rows, int64_t stride, int64_t value_dim, int64_t value_width, int64_t n_keys,
                                    int64_t padded_keys, uint16_t *to) {
    uint16_t order[32];
    for (int i = 0; i < 32; i++) order[i] = (uint16_t)(i / 2 + i % 2 * 16);
    const __m512i side_by_side = _mm512_loadu_si512(order);
    for (int64_t s = 0; s < padded_keys; s += 2)
        for (int64_t v = 0; v < value_width; v += 16) {
            const __mmask16 some = first_lanes(value_dim - v);
            const float *even = rows + s * stride + v;
            __m512 low = _mm512_maskz_loadu_ps(s < n_keys ? some : 0, even);
            __m512 high = _mm512_maskz_loadu_ps(s + 1 < n_keys ? some : 0, even + stride);
            __m512i pairs = _mm512_permutexvar_epi16(side_by_side, (__m512i)_mm512_cvtne2ps_pbh(high, low));
            _mm512_storeu_si512(to + v * padded_keys + s * 16, pairs);
        }
}

/* query (width) bf16 = scale * (row, its rotary part again, zeros). */
INLINE void bf16_query(const float *row, int64_t size, int64_t rope, float scale, int64_t width, uint16_t *query) {
    for (int64_t d = 0; d < width; d += 16) {
        const __mmask16 once = first_lanes(size - d), again = first_lanes(size + rope - d) & ~once;
        __m512 x = _mm512_mask_loadu_ps(_mm512_maskz_loadu_ps(once, row + d), again, row + d - rope);
        _mm256_storeu_si256((__m256i *)(query + d), (__m256i)_mm512_cvtneps_pbh(_mm512_mul_ps(x, _mm512_set1_ps(scale))));
    }
}

#if HAS_BF16_TILES

#define BF16_PRODUCT_ROWS 16

INLINE void bf16_begin(void) { amx_begin(&whole_tiles); }
INLINE void bf16_end(void) { amx_end(); }

/* Tiles 0 to 3: two tiles of rows, or one, times two panels. */
#define ATTENTION_TILES(TALL)                                                                                           \
    do {                                                                                                               \
        for (int64_t k = 0; k < steps; k += 32) {                                                                      \
            _tile_loadd(4, a + k, 2 * a_stride);                                                                       \
            _tile_loadd(6, b + 16 * k, 64);                                                                            \
            _tile_dpbf16ps(0, 4, 6);                                                                                   \
            _tile_loadd(7, b + panel + 16 * k, 64);                                                                    \
            _tile_dpbf16ps(1, 4, 7);                                                                                   \
            if (TALL) {                                                                                                \
                _tile_loadd(5, a + 16 * a_stride + k, 2 * a_stride);                                                   \
                _tile_dpbf16ps(2, 5, 6);                                                                               \
                _tile_dpbf16ps(3, 5, 7);                                                                               \
            }                                                                                                          \
        }                                                                                                              \
    } while (0)

/* As float_product, BF16_PRODUCT_ROWS in place of ROWS_AT_ONCE, `steps` a multiple of BF16_STEP. */
static inline void bf16_product(int adds, const uint16_t *a, int64_t a_stride, int64_t rows, const uint16_t *b, int64_t panel,
                                int64_t steps, float *out, int64_t out_stride) {
    __asm__ volatile("" ::: "memory"); /* as in amx_begin */
    if (adds) {
        _tile_loadd(0, out, 4 * out_stride);
        _tile_loadd(1, out + 16, 4 * out_stride);
    } else {
        _tile_zero(0);
        _tile_zero(1);
    }
    if (rows > 16) {
        if (adds) {
            _tile_loadd(2, out + 16 * out_stride, 4 * out_stride);
            _tile_loadd(3, out + 16 * out_stride + 16, 4 * out_stride);
        } else {
            _tile_zero(2);
            _tile_zero(3);
        }
        ATTENTION_TILES(1);
        _tile_stored(2, out + 16 * out_stride, 4 * out_stride);
        _tile_stored(3, out + 16 * out_stride + 16, 4 * out_stride);
    } else {
        ATTENTION_TILES(0);
    }
    _tile_stored(0, out, 4 * out_stride);
    _tile_stored(1, out + 16, 4 * out_stride);
}

#else

#define BF16_PRODUCT_ROWS 8

INLINE void bf16_begin(void) {}
INLINE void bf16_end(void) {}

/* As float_product, BF16_PRODUCT_ROWS in place of ROWS_AT_ONCE. */
static inline void bf16_product(int adds, const uint16_t *a, int64_t a_stride, int64_t rows, const uint16_t *b, int64_t panel,
                                int64_t steps, float *out, int64_t out_stride) {
    for (int64_t i = 0; i < rows;
         i += BF16_PRODUCT_ROWS, a += BF16_PRODUCT_ROWS * a_stride, out += BF16_PRODUCT_ROWS * out_stride) {
        __m512 sum[BF16_PRODUCT_ROWS][2];
        for (int j = 0; j < BF16_PRODUCT_ROWS; j++)
            for (int c = 0; c < 2; c++)
                sum[j][c] = adds ? _mm512_loadu_ps(out + j * out_stride + 16 * c) : _mm512_setzero_ps();
        for (int64_t k = 0; k < steps; k += 2) {
            const __m512bh left = (__m512bh)_mm512_loadu_si512(b + 16 * k);
            const __m512bh right = (__m512bh)_mm512_loadu_si512(b + panel + 16 * k);
            for (int j = 0; j < BF16_PRODUCT_ROWS; j++) {
                int32_t pair;
                memcpy(&pair, a + j * a_stride + k, 4);
                sum[j][0] = _mm512_dpbf16_ps(sum[j][0], left, (__m512bh)_mm512_set1_epi32(pair));
                sum[j][1] = _mm512_dpbf16_ps(sum[j][1], right, (__m512bh)_mm512_set1_epi32(pair));
            }
        }
        for (int j = 0; j < BF16_PRODUCT_ROWS; j++)
            for (int c = 0; c < 2; c++) _mm512_storeu_ps(out + j * out_stride + 16 * c, sum[j][c]);
    }
}

#endif

/* 2^x within 4e-6 of itself, a fraction of what rounding to bf16 loses; 2^-inf = 0, NaN stays. */
INLINE __m512 rough_exp2(__m512 x) {
    const __m512 r = _mm512_reduce_ps(x, 1); /* x - floor(x); 0 for infinities */
    __m512 p = _mm512_set1_ps(0.01355574692f);
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0.05203236951f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0.2413797627f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0.6930321208f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f));
    return _mm512_scalef_ps(p, x); /* times 2^floor(x) */
}

/* As float_softmax, probs (padded) beside the scores. */
INLINE float bf16_softmax(const float *score, int64_t visible, int64_t padded, float *running_max, float *running_sum,
                          uint16_t *probs) {
    const __m512 none = _mm512_set1_ps(-INFINITY), log2e = _mm512_set1_ps(1.44269504088896341f);
    __m512 found = none, total = _mm512_setzero_ps();
    float shift;
    for (int64_t s = 0; s < visible; s += 16)
        found = _mm512_max_ps(_mm512_mask_loadu_ps(none, first_lanes(visible - s), score + s), found);
    const float keep = move_maximum(_mm512_reduce_max_ps(found), running_max, &shift);
    const __m512 shifted = _mm512_set1_ps(-shift * 1.44269504088896341f);
    for (int64_t s = 0; s < padded; s += 16) {
        __m512 e = rough_exp2(_mm512_fmadd_ps(_mm512_loadu_ps(score + s), log2e, shifted));
        e = _mm512_maskz_mov_ps(first_lanes(visible - s), e);
        total = _mm512_add_ps(total, e);
        _mm256_storeu_si256((__m256i *)(probs + s), (__m256i)_mm512_cvtneps_pbh(e));
    }
    *running_sum = *running_sum * keep + vsum((vfloat)total);
    return keep;
}

#else /* no bf16 arithmetic: HAS_BF16_ATTENTION is 0, these are never reached */

#define BF16_PRODUCT_ROWS 1

INLINE int64_t bf16_pack_space(int64_t width) { return 0; }
INLINE void bf16_pack_keys(const float *rows, int64_t stride, int64_t nope, const float *rope_rows, int64_t rope,
                           int64_t n_keys, int64_t padded_keys, uint16_t *panel, float *space) {}
INLINE void bf16_pack_values(const float *rows, int64_t stride, int64_t value_dim, int64_t value_width, int64_t n_keys,
                             int64_t padded_keys, uint16_t *to) {}
INLINE void bf16_query(const float *row, int64_t size, int64_t rope, float scale, int64_t width, uint16_t *query) {}
INLINE void bf16_begin(void) {}
INLINE void bf16_end(void) {}
INLINE void bf16_product(int adds, const uint16_t *a, int64_t a_stride, int64_t rows, const uint16_t *b, int64_t panel,
                         int64_t steps, float *out, int64_t out_stride) {}
INLINE float bf16_softmax(const float *score, int64_t visible, int64_t padded, float *running_max, float *running_sum,
                          uint16_t *probs) { return 1; }

#endif

#endif
