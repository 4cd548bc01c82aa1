/* Attention of a few queries over packed keys and values, products in bf16 and all sums in float: `precision="fast"`.
 *
 * Included by mla_prefill, which holds the loops over heads, queries and keys. Knows rows of floats, nothing of threads.
 * Both products, scores = queries keys^T and out = probabilities values, are of rows with panels of 16 columns, in which
 * the numbers of two steps of k lie side by side, [k / 2][column][2]: what a tile B of AMX is, and what vdpbf16ps
 * multiplies with a broadcast pair. Sums run over k in order: a row does not depend on the rows multiplied with it.
 *
 * Rotary parts of keys are two bf16 numbers each, what the first rounds off in the second, and meet the query's twice: they
 * are large and differ by little from key to key, so that their rounding alone would move the model by more than all
 * others together (docs/log.md).
 */
#ifndef DEEPZIG_BF16_ATTENTION_H
#define DEEPZIG_BF16_ATTENTION_H

#include "bf16.h"

#define ATTENTION_QUERIES 32 /* that meet packed keys together: two tiles */
#define ATTENTION_PACK 512   /* keys packed at once: with their values they stay in L2 */
#define ATTENTION_KEYS 256   /* of these, whose probabilities are there at once: they stay in L1 */
#define SCORE_STEP (ATTENTION_KEYS + 16) /* from one row of scores to the next; powers of two would meet in few sets */
#define PROB_STEP (ATTENTION_KEYS + 32)

/* Keys and values of one head. All sizes are rounded up to BF16_STEP, with zeros in what was added. */
typedef struct {
    int64_t n_keys, padded_keys;
    int64_t width, value_width; /* of a key with its rotary part twice, of a value */
    uint16_t *keys;             /* (padded_keys / 16, width / 2, 16, 2) */
    uint16_t *values;           /* (value_width / 16, padded_keys / 2, 16, 2) */
} PackedKeys;

/* Rows of queries of one head; rows of the running softmax and of out lie in the same order. */
typedef struct {
    const float *query; /* (rows, size), query_step apart */
    float *running_max, *running_sum, *out; /* (rows), running_step apart; out (rows, value_dim), out_step apart */
    int64_t query_step, running_step, out_step, size, rope, value_dim; /* size: with the rotary part, the last `rope` */
    int64_t rows;    /* at most ATTENTION_QUERIES */
    int64_t next;    /* rows that come after these: their memory is called for meanwhile */
    int64_t visible; /* packed keys that row 0 sees, at least 1; row j sees j more */
    float scale;
} Queries;

#if defined(__AVX512BF16__)
#define BF16_ATTENTION 1

INLINE __mmask16 first_lanes(int64_t count) { return (__mmask16)_bzhi_u32(0xffff, count < 0 ? 0 : count < 16 ? (unsigned)count : 16); }

/* Floats of `space` that bf16_attend and packing need. */
INLINE int64_t bf16_attention_space(int64_t width, int64_t value_width) {
    return ATTENTION_QUERIES * (width / 2 + value_width + SCORE_STEP + PROB_STEP / 2) + 9 * width;
}

/* Keys are rows of `nope` floats, nope_step apart, with rows of `rope` floats behind them, rope_step apart. */
static inline void bf16_pack_keys(const float *nope_rows, int64_t nope_step, int64_t nope, const float *rope_rows,
                                  int64_t rope, PackedKeys *to, float *space) {
    const int64_t width = to->width;
    float *row = space, *rounded = space + width; /* (width), (16, width) bf16 */
    uint16_t *panel = to->keys;
    memset(row, 0, (size_t)width * 4);
    for (int64_t first = 0; first < to->padded_keys; first += 16) {
        for (int64_t s = first; s < first + 16; s++) {
            uint16_t *key = (uint16_t *)rounded + (s - first) * width;
            if (s >= to->n_keys) {
                memset(key, 0, (size_t)width * 2);
                continue;
            }
            memcpy(row, nope_rows + s * nope_step, (size_t)nope * 4);
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
            transpose16(key, column);
            for (int i = 0; i < 16; i++) vstore((float *)panel + 16 * i, column[i]);
        }
    }
}

/* Values are rows of value_dim floats, `step` apart. */
static inline void bf16_pack_values(const float *rows, int64_t step, int64_t value_dim, PackedKeys *to) {
    uint16_t order[32];
    for (int i = 0; i < 32; i++) order[i] = (uint16_t)(i / 2 + i % 2 * 16);
    const __m512i side_by_side = _mm512_loadu_si512(order);
    for (int64_t s = 0; s < to->padded_keys; s += 2)
        for (int64_t v = 0; v < to->value_width; v += 16) {
            const __mmask16 some = first_lanes(value_dim - v);
            const float *even = rows + s * step + v;
            __m512 low = _mm512_maskz_loadu_ps(s < to->n_keys ? some : 0, even);
            __m512 high = _mm512_maskz_loadu_ps(s + 1 < to->n_keys ? some : 0, even + step);
            __m512i pairs = _mm512_permutexvar_epi16(side_by_side, (__m512i)_mm512_cvtne2ps_pbh(high, low));
            _mm512_storeu_si512(to->values + v * to->padded_keys + s * 16, pairs);
        }
}

#if defined(__AMX_BF16__)

#define PRODUCT_ROWS 16

/* Tiles 0 to 3: two tiles of rows, or one, times two panels. */
#define ATTENTION_TILES(TALL)                                                                                           \
    do {                                                                                                               \
        for (int64_t s = 0; s < steps; s++) {                                                                          \
            _tile_loadd(4, a + 32 * s, 2 * a_step);                                                                    \
            _tile_loadd(6, b + 512 * s, 64);                                                                           \
            _tile_dpbf16ps(0, 4, 6);                                                                                   \
            _tile_loadd(7, b + panel + 512 * s, 64);                                                                   \
            _tile_dpbf16ps(1, 4, 7);                                                                                   \
            if (TALL) {                                                                                                \
                _tile_loadd(5, a + 16 * a_step + 32 * s, 2 * a_step);                                                  \
                _tile_dpbf16ps(2, 5, 6);                                                                               \
                _tile_dpbf16ps(3, 5, 7);                                                                               \
            }                                                                                                          \
        }                                                                                                              \
    } while (0)

/* out (rows, 32) = a (rows, 32 steps) times the panels b and b + panel, or, if `adds`, += that. Rows up to the next
 * multiple of PRODUCT_ROWS are read and written. */
static inline void attention_product(int adds, const uint16_t *a, int64_t a_step, int64_t rows, const uint16_t *b,
                                     int64_t panel, int64_t steps, float *out, int64_t out_step) {
    __asm__ volatile("" ::: "memory"); /* as in amx_begin */
    if (adds) {
        _tile_loadd(0, out, 4 * out_step);
        _tile_loadd(1, out + 16, 4 * out_step);
    } else {
        _tile_zero(0);
        _tile_zero(1);
    }
    if (rows > 16) {
        if (adds) {
            _tile_loadd(2, out + 16 * out_step, 4 * out_step);
            _tile_loadd(3, out + 16 * out_step + 16, 4 * out_step);
        } else {
            _tile_zero(2);
            _tile_zero(3);
        }
        ATTENTION_TILES(1);
        _tile_stored(2, out + 16 * out_step, 4 * out_step);
        _tile_stored(3, out + 16 * out_step + 16, 4 * out_step);
    } else {
        ATTENTION_TILES(0);
    }
    _tile_stored(0, out, 4 * out_step);
    _tile_stored(1, out + 16, 4 * out_step);
}

#else

#define PRODUCT_ROWS 8

static inline void attention_product(int adds, const uint16_t *a, int64_t a_step, int64_t rows, const uint16_t *b,
                                     int64_t panel, int64_t steps, float *out, int64_t out_step) {
    for (int64_t i = 0; i < rows; i += PRODUCT_ROWS, a += PRODUCT_ROWS * a_step, out += PRODUCT_ROWS * out_step) {
        __m512 sum[PRODUCT_ROWS][2];
        for (int j = 0; j < PRODUCT_ROWS; j++)
            for (int c = 0; c < 2; c++)
                sum[j][c] = adds ? _mm512_loadu_ps(out + j * out_step + 16 * c) : _mm512_setzero_ps();
        for (int64_t k = 0; k < 32 * steps; k += 2) {
            const __m512bh left = (__m512bh)_mm512_loadu_si512(b + 16 * k);
            const __m512bh right = (__m512bh)_mm512_loadu_si512(b + panel + 16 * k);
            for (int j = 0; j < PRODUCT_ROWS; j++) {
                int32_t pair;
                memcpy(&pair, a + j * a_step + k, 4);
                sum[j][0] = _mm512_dpbf16_ps(sum[j][0], left, (__m512bh)_mm512_set1_epi32(pair));
                sum[j][1] = _mm512_dpbf16_ps(sum[j][1], right, (__m512bh)_mm512_set1_epi32(pair));
            }
        }
        for (int j = 0; j < PRODUCT_ROWS; j++)
            for (int c = 0; c < 2; c++) _mm512_storeu_ps(out + j * out_step + 16 * c, sum[j][c]);
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

/* probs (padded) bf16 = exp(score - the greatest so far), 0 from `visible` on. Updates the running softmax and returns
 * what earlier sums are to be multiplied with. */
INLINE float attention_softmax(const float *score, int64_t visible, int64_t padded, float *running_max,
                               float *running_sum, uint16_t *probs) {
    const __m512 none = _mm512_set1_ps(-INFINITY), log2e = _mm512_set1_ps(1.44269504088896341f);
    __m512 highest = none, total = _mm512_setzero_ps();
    for (int64_t s = 0; s < visible; s += 16)
        highest = _mm512_max_ps(_mm512_mask_loadu_ps(none, first_lanes(visible - s), score + s), highest);
    const float before = *running_max, found = _mm512_reduce_max_ps(highest), most = found > before ? found : before;
    const float shift = most > -INFINITY ? most : 0.0f;
    const float keep = most == before ? 1.0f : expf(before - shift);
    const __m512 shifted = _mm512_set1_ps(-shift * 1.44269504088896341f);
    for (int64_t s = 0; s < padded; s += 16) {
        const __mmask16 seen = first_lanes(visible - s);
        const __m512 e = _mm512_maskz_mov_ps(seen, rough_exp2(_mm512_fmadd_ps(_mm512_loadu_ps(score + s), log2e, shifted)));
        total = _mm512_add_ps(total, e);
        _mm256_storeu_si256((__m256i *)(probs + s), (__m256i)_mm512_cvtneps_pbh(e));
    }
    *running_max = most;
    *running_sum = *running_sum * keep + vsum((vfloat)total);
    return keep;
}

INLINE void call_for(const float *row, int64_t size) {
    for (int64_t i = 0; i < size; i += 16) __builtin_prefetch(row + i, 0, 2);
}

/* Continues the running softmax of q's rows with the packed keys. */
static inline void bf16_attend(const Queries *q, const PackedKeys *packed, float *space) {
    const int64_t width = packed->width, value_width = packed->value_width;
    float *sums = space, *scores = sums + ATTENTION_QUERIES * value_width;
    uint16_t *queries = (uint16_t *)(scores + ATTENTION_QUERIES * SCORE_STEP), *probs = queries + ATTENTION_QUERIES * width;
    for (int64_t j = 0; j < q->rows; j++) {
        for (int64_t d = 0; d < width; d += 16) {
            const float *from = q->query + j * q->query_step + d;
            const __mmask16 once = first_lanes(q->size - d), again = first_lanes(q->size + q->rope - d) & ~once;
            __m512 x = _mm512_mask_loadu_ps(_mm512_maskz_loadu_ps(once, from), again, from - q->rope);
            x = _mm512_mul_ps(x, _mm512_set1_ps(q->scale));
            _mm256_storeu_si256((__m256i *)(queries + j * width + d), (__m256i)_mm512_cvtneps_pbh(x));
        }
        memcpy(sums + j * value_width, q->out + j * q->out_step, (size_t)q->value_dim * 4);
    }
#if defined(__AMX_BF16__)
    amx_begin();
#endif
    for (int64_t first = 0; first < packed->n_keys && first < q->visible + q->rows - 1; first += ATTENTION_KEYS) {
        int64_t most = q->visible + q->rows - 1 - first; /* keys that the last row sees */
        most = most < packed->n_keys - first ? most : packed->n_keys - first;
        const int64_t padded = most < ATTENTION_KEYS ? bf16_width(most) : ATTENTION_KEYS;
        for (int64_t s = 0; s < padded; s += 32)
            attention_product(0, queries, width, q->rows, packed->keys + (first + s) * width, 16 * width,
                              width / BF16_STEP, scores + s, SCORE_STEP);
        for (int64_t j = 0; j < q->rows; j++) {
            int64_t visible = q->visible + j - first;
            visible = visible < most ? visible : most;
            visible = visible < padded ? visible : padded;
            float *sum = sums + j * value_width;
            if (first == 0 && j < q->next) {
                call_for(q->query + (j + q->rows) * q->query_step, q->size);
                call_for(q->out + (j + q->rows) * q->out_step, q->value_dim);
            }
            const float keep = attention_softmax(scores + j * SCORE_STEP, visible, padded, q->running_max + j * q->running_step,
                                                 q->running_sum + j * q->running_step, probs + j * PROB_STEP);
            for (int64_t v = 0; keep != 1.0f && v < value_width; v += LANES) vstore(sum + v, vload(sum + v) * keep);
        }
        for (int64_t v = 0; v < value_width; v += 32)
            attention_product(1, probs, PROB_STEP, q->rows, packed->values + v * packed->padded_keys + 16 * first,
                              16 * packed->padded_keys, padded / BF16_STEP, sums + v, value_width);
    }
#if defined(__AMX_BF16__)
    amx_end();
#endif
    for (int64_t j = 0; j < q->rows; j++)
        memcpy(q->out + j * q->out_step, sums + j * value_width, (size_t)q->value_dim * 4);
}

#else /* no bf16 arithmetic: never reached */
#define BF16_ATTENTION 0

INLINE int64_t bf16_attention_space(int64_t width, int64_t value_width) { return 0; }
static inline void bf16_pack_keys(const float *nope_rows, int64_t nope_step, int64_t nope, const float *rope_rows,
                                  int64_t rope, PackedKeys *to, float *space) {}
static inline void bf16_pack_values(const float *rows, int64_t step, int64_t value_dim, PackedKeys *to) {}
static inline void bf16_attend(const Queries *q, const PackedKeys *packed, float *space) {}

#endif

#endif
