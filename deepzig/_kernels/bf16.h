/* Products of weights with activations given as sums of bfloat16 terms, in AMX tiles: the way of prompts on CPUs that have
 * them. Included by ways.h, and for its terms by fp8_rows.h, word_lanes.h and bf16_attention.h; knows matrices and float
 * rows, nothing of threads. Tiles are 16 x 16 x 32: weight rows lie as tile A, packed activations as tile B. (Without AMX
 * whole numbers of 16 bits are as fast, and more exact: word_lanes.h.)
 *
 * One term is `precision="fast"`; three hold all 24 bits of a float. (Two hold 16 bits and move the logits of small models
 * by up to 2.7e-4: docs/log.md.) Weights stay what the codes say, exact in bf16 but for float weights, and scales multiply
 * float sums of each group.
 * Sums run over k in fixed steps: a row does not depend on the rows multiplied with it.
 */
#ifndef DEEPZIG_BF16_H
#define DEEPZIG_BF16_H

#include "amx.h"

#define BF16_STEP 32 /* columns of K that one instruction takes */

/* Whether tiles multiply bf16. */
#if defined(__AMX_BF16__)
#define HAS_BF16_TILES 1
#else
#define HAS_BF16_TILES 0
#endif

INLINE int64_t bf16_width(int64_t k) { return round_up(k, BF16_STEP); }

/* Columns whose sums are scaled and added to the row's at once: a group, or a part of the only one. */
#define BF16_TURN 256

INLINE int64_t bf16_turn(const Matrix *w) {
    return w->group_size < w->k ? least(w->group_size, BF16_TURN) : BF16_TURN;
}

/* Whether turns have one scale each; if not, scales are folded into the weights, which is not exact. */
INLINE int bf16_scales_apart(const Matrix *w) {
    return w->group_size >= w->k || (w->group_size % BF16_STEP == 0 && BF16_TURN % w->group_size == 0);
}

/* Terms to give activations for w: 0 stands for plain float products. */
INLINE int bf16_terms(const Matrix *w, int arithmetic) {
    if (!HAS_BF16_TILES || arithmetic == DECODING) return 0;
    if (arithmetic == FAST) return 1;
    const int exact = w->format == BF16 || w->format == FP8 || w->format == INT8 || w->format == INT4;
    return exact && bf16_scales_apart(w) ? 3 : 0;
}

#if defined(__AVX512BF16__)

/* Up to 16 floats from p, zeros behind, as bf16; `rest` becomes what the rounding lost: of infinity nothing. */
INLINE __m256i bf16_round(const float *p, int64_t count, __m512 *rest) {
    __mmask16 mask = count >= 16 ? 0xffff : count <= 0 ? 0 : (__mmask16)((1u << count) - 1);
    __m512 value = _mm512_maskz_loadu_ps(mask, p);
    __m256i high = (__m256i)_mm512_cvtneps_pbh(value);
    const __m512 kept = _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(high), 16));
    const __mmask16 some = _mm512_cmp_ps_mask(_mm512_abs_ps(kept), _mm512_set1_ps(INFINITY), _CMP_NEQ_UQ);
    *rest = _mm512_maskz_sub_ps(some, value, kept);
    return high;
}

#endif

#if HAS_BF16_TILES

#define BF16_ROWS 32   /* panels are whole pairs of tiles */
#define BF16_X_ROWS 16 /* packed activations are whole tiles */

INLINE int64_t bf16_packed_size(int64_t x_rows, int64_t k, int terms) {
    return round_up(x_rows, BF16_X_ROWS) * bf16_width(k) * terms;
}

/* Packed activations: for each 16 x rows, each 32 columns, each term a tile B [k / 2][x row][k % 2]. */
static inline void bf16_pack(const float *const *x, int64_t x_rows, int64_t k, int terms, uint16_t *packed) {
    const int64_t width = bf16_width(k);
    for (int64_t j = 0; j < x_rows; j += BF16_X_ROWS)
        for (int64_t at = 0; at < width; at += BF16_STEP, packed += TILE_BF16 * terms) {
            uint32_t *tile = (uint32_t *)packed;
            for (int64_t c = 0; c < BF16_X_ROWS; c++) {
                float rest[32] = {0};
                uint16_t rounded[32];
                if (j + c < x_rows)
                    memcpy(rest, x[j + c] + at, sizeof(float) * (size_t)least(k - at, 32));
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

/* A row of fp8 codes as bf16, in tiles. The halves of 128 bits that unpacking makes come out in order because the codes
 * were sorted by eights before. */
INLINE void bf16_from_fp8(const uint8_t *codes, int64_t steps, uint16_t *to) {
    const __m512i order = _mm512_setr_epi64(0, 4, 1, 5, 2, 6, 3, 7);
    for (int64_t s = 0; s < steps; s += 2, to += 2 * TILE_BF16) {
        const __mmask64 some = s + 1 < steps ? ~(__mmask64)0 : 0xffffffff;
        __m512i half[2];
        fp8_to_bf16(_mm512_permutexvar_epi64(order, _mm512_maskz_loadu_epi8(some, codes + 32 * s)), half, half + 1);
        _mm512_storeu_si512(to, half[0]);
        if (s + 1 < steps) _mm512_storeu_si512(to + TILE_BF16, half[1]);
    }
}

/* Rows [first, last) of w as tiles (rows / 16, K / 32, 16, 32); those beyond the last are zero. `row` has room for K. */
static inline void bf16_tiles(const Matrix *w, int64_t first, int64_t last, int64_t rows, float *row, uint16_t *panel) {
    const int64_t steps = bf16_width(w->k) / BF16_STEP;
    Matrix plain = *w;
    if (bf16_scales_apart(w)) plain.scale_format = SCALE_NONE;
    for (int64_t i = 0; i < rows; i++) {
        uint16_t *to = panel + i / 16 * steps * TILE_BF16 + i % 16 * 32;
        const uint8_t *codes = codes_of(w, first + i);
        if (first + i >= last) {
            for (int64_t s = 0; s < steps; s++) memset(to + TILE_BF16 * s, 0, 64);
        } else if (w->format == BF16 && w->k % BF16_STEP == 0) {
            for (int64_t s = 0; s < steps; s++) memcpy(to + TILE_BF16 * s, codes + 64 * s, 64);
        } else if (w->format == FP8 && w->k % BF16_STEP == 0 && plain.scale_format == SCALE_NONE) {
            bf16_from_fp8(codes, steps, to);
        } else {
            __m512 rest;
            dequantize_row(&plain, first + i, row);
            for (int64_t s = 0; s < steps; s++)
                for (int half = 0; half < 32; half += 16) {
                    __m256i value = bf16_round(row + 32 * s + half, w->k - 32 * s - half, &rest);
                    _mm256_storeu_si256((__m256i *)(to + TILE_BF16 * s + half), value);
                }
        }
    }
}

/* Tiles C and D: the products of two tiles of weight rows with a block of 16 x rows, `steps` steps of K. */
#define BF16_TALL(C, D)                                                                                                 \
    do {                                                                                                               \
        for (int64_t s = 0; s < steps; s++) {                                                                          \
            _tile_loadd(4, weights + TILE_BF16 * s, 64);                                                               \
            _tile_loadd(5, weights + apart + TILE_BF16 * s, 64);                                                       \
            for (int term = 0; term < terms; term++) {                                                                 \
                _tile_loadd(6, x + TILE_BF16 * (terms * s + term), 64);                                                \
                _tile_dpbf16ps(C, 4, 6);                                                                               \
                _tile_dpbf16ps(D, 5, 6);                                                                               \
            }                                                                                                          \
        }                                                                                                              \
    } while (0)

/* The products of one tile of weight rows with two blocks of x rows, of one term. */
#define BF16_WIDE(C, D)                                                                                                 \
    do {                                                                                                               \
        for (int64_t s = 0; s < steps; s++) {                                                                          \
            _tile_loadd(4, weights + TILE_BF16 * s, 64);                                                               \
            _tile_loadd(6, x + TILE_BF16 * s, 64);                                                                     \
            _tile_dpbf16ps(C, 4, 6);                                                                                   \
            _tile_loadd(5, x + apart + TILE_BF16 * s, 64);                                                             \
            _tile_dpbf16ps(D, 4, 5);                                                                                   \
        }                                                                                                              \
    } while (0)

#define BF16_PRODUCTS(C, D)                                                                                             \
    do {                                                                                                               \
        _tile_zero(C);                                                                                                 \
        _tile_zero(D);                                                                                                 \
        if (wide) BF16_WIDE(C, D);                                                                                     \
        else BF16_TALL(C, D);                                                                                          \
        _tile_stored(C, product[0], 64);                                                                               \
        _tile_stored(D, product[1], 64);                                                                               \
    } while (0)

/* product[2]: of two tiles of weights, or, `wide`, with two blocks of x; the second lies `apart` values from the first. */
INLINE void bf16_multiply(int wide, int terms, int set, const uint16_t *weights, const uint16_t *x, int64_t apart,
                          int64_t steps, float (*product)[16][16]) {
    if (set) BF16_PRODUCTS(0, 1);
    else BF16_PRODUCTS(2, 3);
}

/* sum[16][16] += scale[row * scale_stride] * product. */
INLINE void bf16_collect(float *sum, const float *scale, int64_t scale_stride, float (*product)[16]) {
    for (int i = 0; i < 16; i++)
        vstore(sum + 16 * i, vload(sum + 16 * i) + vset(scale[i * scale_stride]) * vload(product[i]));
}

/* sum (1 or 2 blocks, rows, 16): the panel's rows times 16 x rows, or 32 if `wide`. What is multiplied is collected one
 * turn later, while the tiles work on the next; the packed x of a turn of K stays in L1 while weight rows pass. */
INLINE void bf16_square(int wide, int terms, const Matrix *w, const uint16_t *panel, int64_t rows, const float *scale,
                        const uint16_t *x, float *sum, Prefetch *ahead) {
    const int64_t steps = bf16_width(w->k) / BF16_STEP;
    const int64_t columns = bf16_scales_apart(w) ? bf16_turn(w) : BF16_TURN;
    const int64_t turn = columns / BF16_STEP, turns = parts_of(w->k, columns);
    const int64_t second_sum = wide ? 16 * rows : 256, second_scale = wide ? 0 : 16 * turns;
    float product[2][2][16][16];
    float *sum_before = NULL;
    const float *scale_before = NULL;
    int set = 0;
    memset(sum, 0, (size_t)rows * (wide ? 128 : 64));
    for (int64_t block = 0; block < steps; block += BF16_TURN / BF16_STEP)
        for (int64_t r = 0; r < rows; r += wide ? 16 : 32)
            for (int64_t s = block; s < block + BF16_TURN / BF16_STEP && s < steps; s += turn, set ^= 1) {
                bf16_multiply(wide, terms, set, panel + (r / 16 * steps + s) * TILE_BF16, x + TILE_BF16 * terms * s,
                              steps * TILE_BF16, least(steps - s, turn), product[set]);
                prefetch_some(ahead);
                if (sum_before) {
                    bf16_collect(sum_before, scale_before, turns, product[1 - set][0]);
                    bf16_collect(sum_before + second_sum, scale_before + second_scale, turns, product[1 - set][1]);
                }
                sum_before = sum + 16 * r;
                scale_before = scale + r * turns + s / turn;
            }
    bf16_collect(sum_before, scale_before, turns, product[1 - set][0]);
    bf16_collect(sum_before + second_sum, scale_before + second_scale, turns, product[1 - set][1]);
}

/* out[j * out_stride + n - first] = W[n] . x[j] for rows [first, last); `next`: codes of as many rows needed after. */
static inline void bf16_block(const Matrix *w, int64_t first, int64_t last, const uint16_t *packed, int64_t x_rows,
                              int terms, float *out, int64_t out_stride, const void *next, float *space) {
    const int64_t rows = round_up(last - first, BF16_ROWS), width = bf16_width(w->k);
    const int64_t turn = bf16_scales_apart(w) ? bf16_turn(w) : BF16_TURN, turns = parts_of(w->k, turn);
    float *sum = space, *scale = sum + 32 * rows, *row = scale + turns * rows;
    uint16_t *panel = (uint16_t *)(row + width);
    Prefetch ahead = {next, (last - first) * w->row_bytes / 64, 0};
    ahead.at_once = ahead.lines / (parts_of(x_rows, BF16_X_ROWS) * turns * rows / 32) + 1;
    bf16_tiles(w, first, last, rows, row, panel);
    for (int64_t i = 0; i < rows; i++) {
        if (bf16_scales_apart(w)) row_scales(w, first + i < last ? first + i : first, turn, scale + i * turns);
        else for (int64_t t = 0; t < turns; t++) scale[i * turns + t] = 1;
    }
    amx_begin(&whole_tiles);
    for (int64_t j = 0; j < x_rows;) {
        const uint16_t *x = packed + j * width * terms;
        const int wide = terms == 1 && x_rows - j > BF16_X_ROWS;
        if (wide) bf16_square(1, 1, w, panel, rows, scale, x, sum, &ahead);
        else if (terms == 1) bf16_square(0, 1, w, panel, rows, scale, x, sum, &ahead);
        else bf16_square(0, 3, w, panel, rows, scale, x, sum, &ahead);
        for (int block = 0; block <= wide; block++, j += BF16_X_ROWS)
            for (int64_t r = 0; r < last - first; r += 16)
                write_square(sum + 16 * (r + block * rows), last - first - r, least(x_rows - j, BF16_X_ROWS),
                             out + j * out_stride + r, out_stride);
    }
    amx_end();
}

/* Floats of `space` that bf16_block needs for `rows` weight rows: sums, scales, a row, and the panel. */
INLINE int64_t bf16_space(const Matrix *w, int64_t rows) {
    rows = round_up(rows, BF16_ROWS);
    return rows * (32 + bf16_width(w->k) / BF16_STEP) + bf16_width(w->k) + rows * bf16_width(w->k) / 2;
}

#endif

#endif
