/* Digits in AMX tiles: int8 and int4 weights with many x rows, of prompts or decoding. See digits.h for the numbers.
 *
 * Included by ways.h. Weight rows become a panel of tiles A, 16 rows x 64 columns of signed bytes; packed x rows are tiles
 * B, 64 columns x 16 rows, one tile for each digit. The digits' sums over a group of columns are joined and scaled in
 * float, and added in order of groups: no row meets another.
 */
#ifndef DEEPZIG_DIGIT_TILES_H
#define DEEPZIG_DIGIT_TILES_H

#include "amx.h"
#include "digits.h"

#if defined(__AMX_INT8__)

#define DIGIT_BLOCK 16      /* x rows of a packed block */
#define DIGIT_BLOCK_STEPS 8 /* steps of K whose packed tiles stay in L1 while weight rows pass */

/* Whether tiles can multiply w: a step of 64 columns has one scale. */
INLINE int takes_digit_tiles(const Matrix *w) {
    const int64_t columns = joined_columns(w);
    return takes_digits(w) && joined_in_groups(w) && columns % DIGIT_STEP == 0 && DIGIT_MOST_UNIT % columns == 0;
}

/* A packed block: tiles (K / 64, digits, 16, 16, 4) and the units of x rows (K / largest_columns, 16) float. */
INLINE int64_t digit_block_bytes(const Matrix *w, int digits) {
    return 16 * digits * w->k + 64 * parts_of(w->k, largest_columns(w));
}

INLINE int64_t digit_blocks_bytes(const Matrix *w, int64_t x_rows, int digits) {
    return parts_of(x_rows, DIGIT_BLOCK) * digit_block_bytes(w, digits);
}

/* Packed blocks of `x_rows` x rows; `space` holds 3 K bytes. */
static inline void pack_digit_blocks(const Matrix *w, const float *const *x, int64_t x_rows, int digits,
                                     uint8_t *packed, uint8_t *space) {
    const int64_t bytes = digit_block_bytes(w, digits);
    for (int64_t j = 0; j < x_rows; j++) {
        uint8_t *block = packed + j / DIGIT_BLOCK * bytes;
        if (j % DIGIT_BLOCK == 0 && x_rows - j < DIGIT_BLOCK) memset(block, 0, (size_t)bytes);
        float *unit = (float *)(block + 16 * digits * w->k) + j % DIGIT_BLOCK;
        split_digits(x[j], w->k, largest_columns(w), DIGIT_STEP, digits, space, 0, unit, DIGIT_BLOCK);
        for (int64_t k = 0; k < w->k; k += DIGIT_STEP)
            for (int d = 0; d < digits; d++) {
                uint8_t *from = space + digits * k + DIGIT_STEP * d;
                uint8_t *tile = block + 16 * digits * k + TILE_BYTES * d + 4 * (j % DIGIT_BLOCK);
                if (w->format == INT4) sort_nibbles(from, 32);
                for (int quad = 0; quad < 16; quad++) memcpy(tile + 64 * quad, from + 4 * quad, 4);
            }
    }
}

/* Rows [first, last) of w as tiles (rows / 16, K / 64, 16, 64); those beyond the last are zero. */
static inline void digit_panel(const Matrix *w, int64_t first, int64_t last, uint8_t *panel) {
    const int64_t steps = w->k / DIGIT_STEP;
    const __m512i flip = _mm512_set1_epi8(w->offset ? (char)0x80 : 0);
    const __m256i low = _mm256_set1_epi8(15), eight = _mm256_set1_epi8(8);
    for (int64_t i = 0; i < round_up(last - first, 16); i++) {
        const uint8_t *codes = codes_of(w, first + i);
        uint8_t *to = panel + i / 16 * steps * TILE_BYTES + i % 16 * 64;
        for (int64_t s = 0; s < steps; s++, to += TILE_BYTES) {
            if (first + i >= last) {
                memset(to, 0, 64);
            } else if (w->format == INT4) {
                __m256i pairs = _mm256_loadu_si256((const __m256i *)(codes + 32 * s));
                __m256i odd = _mm256_and_si256(_mm256_srli_epi16(pairs, 4), low);
                _mm256_storeu_si256((__m256i *)to, _mm256_sub_epi8(_mm256_and_si256(pairs, low), eight));
                _mm256_storeu_si256((__m256i *)(to + 32), _mm256_sub_epi8(odd, eight));
            } else {
                _mm512_storeu_si512(to, _mm512_xor_si512(_mm512_loadu_si512(codes + 64 * s), flip));
            }
        }
    }
}

/* Products of 16 weight rows with a block, `steps` steps of K, each digit by itself. Two sets of tiles take turns. */
#define TWO_DIGITS(C, D)                                                                                                \
    do {                                                                                                               \
        _tile_zero(C);                                                                                                 \
        _tile_zero(D);                                                                                                 \
        for (int64_t s = 0; s < steps; s++) {                                                                          \
            _tile_loadd(6, weights + TILE_BYTES * s, 64);                                                              \
            _tile_loadd(7, x + 2 * TILE_BYTES * s, 64);                                                                \
            _tile_dpbssd(C, 6, 7);                                                                                     \
            _tile_loadd(5, x + 2 * TILE_BYTES * s + TILE_BYTES, 64);                                                   \
            _tile_dpbssd(D, 6, 5);                                                                                     \
        }                                                                                                              \
        _tile_stored(C, product[0], 64);                                                                               \
        _tile_stored(D, product[1], 64);                                                                               \
    } while (0)

#define THREE_DIGITS(C, D, E)                                                                                           \
    do {                                                                                                               \
        _tile_zero(C);                                                                                                 \
        _tile_zero(D);                                                                                                 \
        _tile_zero(E);                                                                                                 \
        for (int64_t s = 0; s < steps; s++) {                                                                          \
            _tile_loadd(6, weights + TILE_BYTES * s, 64);                                                              \
            _tile_loadd(7, x + 3 * TILE_BYTES * s, 64);                                                                \
            _tile_dpbssd(C, 6, 7);                                                                                     \
            _tile_loadd(7, x + 3 * TILE_BYTES * s + TILE_BYTES, 64);                                                   \
            _tile_dpbssd(D, 6, 7);                                                                                     \
            _tile_loadd(7, x + 3 * TILE_BYTES * s + 2 * TILE_BYTES, 64);                                               \
            _tile_dpbssd(E, 6, 7);                                                                                     \
        }                                                                                                              \
        _tile_stored(C, product[0], 64);                                                                               \
        _tile_stored(D, product[1], 64);                                                                               \
        _tile_stored(E, product[2], 64);                                                                               \
    } while (0)

INLINE void multiply_digits(int digits, int set, const uint8_t *weights, const uint8_t *x, int64_t steps,
                            int32_t (*product)[16][16]) {
    if (digits == 2) {
        if (set) TWO_DIGITS(0, 1);
        else TWO_DIGITS(2, 3);
    } else {
        if (set) THREE_DIGITS(0, 1, 2);
        else THREE_DIGITS(3, 4, 5);
    }
}

/* sum[16][16] += scale[row * scale_stride] * unit[x row] * (joined digits of `product`); fused as in digits.h, for the same
 * bits. */
INLINE void collect_digits(int digits, float *sum, const float *scale, int64_t scale_stride, const float *unit,
                           int32_t (*product)[16][16]) {
    const __m512 x_unit = _mm512_loadu_ps(unit);
    for (int i = 0; i < 16; i++) {
        const __m512 value = join_digits(digits, _mm512_loadu_si512(product[0][i]), _mm512_loadu_si512(product[1][i]),
                                         _mm512_loadu_si512(product[2][i]));
        const __m512 factor = _mm512_mul_ps(_mm512_set1_ps(scale[i * scale_stride]), x_unit);
        _mm512_storeu_ps(sum + 16 * i, _mm512_fmadd_ps(factor, value, _mm512_loadu_ps(sum + 16 * i)));
    }
}

/* sum (rows / 16, 16, 16): the panel's rows times a block. What is multiplied is collected one turn later, while the tiles
 * work on the next. */
INLINE void digit_square(int digits, const Matrix *w, const uint8_t *panel, int64_t rows, const float *scale,
                         const uint8_t *x, float *sum, Prefetch *ahead) {
    const int64_t steps = w->k / DIGIT_STEP, turn = joined_columns(w) / DIGIT_STEP, turns = parts_of(steps, turn);
    const int64_t unit_steps = largest_columns(w) / DIGIT_STEP;
    const float *unit = (const float *)(x + 16 * digits * w->k), *scale_before = NULL, *unit_before = NULL;
    int32_t product[2][3][16][16];
    float *sum_before = NULL;
    int set = 0;
    memset(sum, 0, (size_t)rows * 64);
    for (int64_t block = 0; block < steps; block += DIGIT_BLOCK_STEPS)
        for (int64_t r = 0; r < rows / 16; r++)
            for (int64_t s = block; s < block + DIGIT_BLOCK_STEPS && s < steps; s += turn, set ^= 1) {
                multiply_digits(digits, set, panel + (r * steps + s) * TILE_BYTES, x + TILE_BYTES * digits * s,
                                least(steps - s, turn), product[set]);
                prefetch_some(ahead);
                if (sum_before) collect_digits(digits, sum_before, scale_before, turns, unit_before, product[1 - set]);
                sum_before = sum + 256 * r;
                scale_before = scale + 16 * r * turns + s / turn;
                unit_before = unit + DIGIT_BLOCK * (s / unit_steps);
            }
    collect_digits(digits, sum_before, scale_before, turns, unit_before, product[1 - set]);
}

/* Floats of `space` that digit_blocks needs for so many weight rows: scales, sums, and the panel. */
INLINE int64_t digit_blocks_space(const Matrix *w, int64_t rows) {
    rows = round_up(rows, 16);
    return rows * (w->k / DIGIT_STEP) + rows * 16 + rows * w->k / 4;
}

INLINE void digit_blocks_as(int digits, const Matrix *w, int64_t first, int64_t last, const uint8_t *packed,
                            int64_t x_rows, float *out, int64_t out_stride, const void *next, float *space) {
    const int64_t rows = round_up(last - first, 16), bytes = digit_block_bytes(w, digits);
    const int64_t turns = parts_of(w->k, joined_columns(w));
    float *sum = space, *scale = sum + rows * 16;
    uint8_t *panel = (uint8_t *)(scale + rows * turns);
    Prefetch ahead = {next, (last - first) * w->row_bytes / 64, 0};
    ahead.at_once = ahead.lines / (parts_of(x_rows, DIGIT_BLOCK) * turns * rows / 16) + 1;
    digit_panel(w, first, last, panel);
    for (int64_t i = 0; i < rows; i++)
        row_scales(w, first + i < last ? first + i : first, joined_columns(w), scale + i * turns);
    amx_begin(&whole_tiles);
    for (int64_t j = 0; j < x_rows; j += DIGIT_BLOCK) {
        const uint8_t *x = packed + j / DIGIT_BLOCK * bytes;
        digit_square(digits, w, panel, rows, scale, x, sum, &ahead);
        for (int64_t r = 0; r < last - first; r += 16)
            write_square(sum + 16 * r, last - first - r, least(x_rows - j, DIGIT_BLOCK), out + j * out_stride + r,
                         out_stride);
    }
    amx_end();
}

/* out[j * out_stride + n - first] = W[n] . x[j] for rows [first, last); `next`: codes of as many rows needed after. */
static inline void digit_blocks(const Matrix *w, int64_t first, int64_t last, const uint8_t *packed, int64_t x_rows,
                                int digits, float *out, int64_t out_stride, const void *next, float *space) {
    if (digits == 2) digit_blocks_as(2, w, first, last, packed, x_rows, out, out_stride, next, space);
    else digit_blocks_as(3, w, first, last, packed, x_rows, out, out_stride, next, space);
}

#endif
#endif
