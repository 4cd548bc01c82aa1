/* Products of weights with one bf16 term of activations, in registers whose lanes are weight rows: `precision="fast"` on
 * CPUs with AVX512-BF16 but without AMX. The functions are those that bf16.h has for AMX.
 *
 * Included by bf16.h. Blocks of BF16_ROWS weight rows x BF16_TURN columns are turned, so that one vector holds two columns of
 * 16 rows, and stay in L1 while packed x rows go by, a pair of whose columns is spread over all lanes. Weights are what the
 * codes say; scales multiply the float sums of each group.
 */
#ifndef DEEPZIG_BF16_LANES_H
#define DEEPZIG_BF16_LANES_H

#include "blocks.h"

#define BF16_ROWS 32
#define BF16_PASS 128    /* x rows that meet a block before it is made again */
#define BF16_COLUMNS 12  /* x rows at once: what registers hold sums for, beside a vector of each operand */

typedef struct {
    uint16_t panel[BF16_TURN / 2][BF16_ROWS][2];
    float scale[BF16_TURN / BF16_STEP][BF16_ROWS];
    float sum[BF16_PASS][BF16_ROWS];
    uint16_t rounded[16][BF16_TURN]; /* rows that are not turned as they are decoded */
    float row[];                     /* K floats */
} Bf16Space;

INLINE int64_t bf16_packed_size(int64_t columns, int64_t k, int terms) { return columns * bf16_width(k) * terms; }

/* Packed activations: rows of bf16_width(K). */
static inline void bf16_pack(const float *const *x, int64_t columns, int64_t k, int terms, uint16_t *packed) {
    const int64_t width = bf16_width(k);
    __m512 rest;
    for (int64_t j = 0; j < columns; j++)
        for (int64_t at = 0; at < width; at += 16)
            _mm256_storeu_si256((__m256i *)(packed + j * width + at), bf16_round(x[j] + at, k - at, &rest));
}

/* 32 columns of 16 rows of bf16, turned. */
INLINE void turn_bf16(const uint8_t *const *row, int64_t ahead, uint16_t (*panel)[BF16_ROWS][2]) {
    vfloat value[16], column[16];
    for (int i = 0; i < 16; i++) {
        __builtin_prefetch(row[i] + ahead, 0, 2);
        value[i] = (vfloat)_mm512_loadu_si512(row[i]);
    }
    transpose(value, column);
    for (int i = 0; i < 16; i++) vstore((float *)panel[i][0], column[i]);
}

/* 64 columns of 16 rows of fp8, turned by fours; then each code becomes two bytes, and fours become two pairs. */
INLINE void turn_fp8(const uint8_t *const *row, int64_t ahead, uint16_t (*panel)[BF16_ROWS][2]) {
    const __m512i low0 = _mm512_loadu_si512(fp8_low_bytes), low1 = _mm512_loadu_si512(fp8_low_bytes + 64);
    const __m512i high0 = _mm512_loadu_si512(fp8_high_bytes), high1 = _mm512_loadu_si512(fp8_high_bytes + 64);
    const __m512i four = _mm512_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28, 32, 36, 40, 44, 48, 52, 56, 60);
    const __m512i first = _mm512_add_epi8(_mm512_mullo_epi32(four, _mm512_set1_epi32(0x01010101)),
                                          _mm512_set1_epi32(0x41014000)); /* low and high byte 0, then 1 */
    const __m512i second = _mm512_add_epi8(first, _mm512_set1_epi8(2)), sign = _mm512_set1_epi8((char)0x80);
    vfloat value[16], column[16];
    for (int i = 0; i < 16; i++) {
        __builtin_prefetch(row[i] + ahead, 0, 2);
        value[i] = (vfloat)_mm512_loadu_si512(row[i]);
    }
    transpose(value, column);
    for (int i = 0; i < 16; i++) {
        const __m512i code = (__m512i)column[i];
        __m512i low = _mm512_permutex2var_epi8(low0, code, low1), high = _mm512_permutex2var_epi8(high0, code, high1);
        high = _mm512_ternarylogic_epi32(high, code, sign, 0xf8); /* high | (code & sign) */
        _mm512_storeu_si512(panel[2 * i][0], _mm512_permutex2var_epi8(low, first, high));
        _mm512_storeu_si512(panel[2 * i + 1][0], _mm512_permutex2var_epi8(low, second, high));
    }
}

/* Columns [k, k + width) of row n as bf16, zeros behind them up to a whole step; with its scale if that is not apart. */
static inline void round_weights(const Matrix *w, int64_t n, int64_t k, int64_t width, float *row, uint16_t *rounded) {
    const float *from = row;
    __m512 rest;
    if (w->format == F32) {
        from = (const float *)((const uint8_t *)w->codes + n * w->row_bytes) + k;
    } else if (bf16_scales_apart(w) && is_even(w)) {
        decode_weights(w, n, k, width, row);
    } else {
        Matrix plain = *w;
        if (bf16_scales_apart(w)) plain.scale_format = SCALE_NONE;
        dequantize_row(&plain, n, row);
        from = row + k;
    }
    for (int64_t at = 0; at < bf16_width(width); at += 16)
        _mm256_storeu_si256((__m256i *)(rounded + at), bf16_round(from + at, width - at, &rest));
}

/* Columns [k, k + width) of rows [first, last) as panel; rows beyond the last are as the last. Returns columns of a turn. */
static inline int64_t bf16_panel(const Matrix *w, int64_t first, int64_t last, int64_t k, int64_t width, Bf16Space *space) {
    const int64_t turn = bf16_scales_apart(w) ? bf16_turn(w) : BF16_TURN, ahead = BF16_ROWS * w->row_bytes;
    const int64_t group = bf16_scales_apart(w) ? k / w->group_size : 0, turns = (width + turn - 1) / turn;
    const int64_t bits = w->format == BF16 && width % BF16_STEP == 0 ? 16
                         : w->format == FP8 && width % 64 == 0 && bf16_scales_apart(w) ? 8 : 0;
    const uint8_t *codes[16];
    for (int half = 0; half < BF16_ROWS; half += 16) {
        for (int i = 0; i < 16; i++) {
            const int64_t n = first + half + i < last ? first + half + i : last - 1, scale = first_scale(w, n) + group;
            codes[i] = (const uint8_t *)w->codes + n * w->row_bytes + k * bits / 8;
            if (!bits) round_weights(w, n, k, width, space->row, space->rounded[i]);
            for (int64_t t = 0; t < turns; t++)
                space->scale[t][half + i] = bf16_scales_apart(w) ? scale_at(w, scale + t) : 1;
        }
        for (int64_t at = 0; at < width; at += bits == 8 ? 64 : 32) {
            const uint8_t *row[16];
            uint16_t(*panel)[BF16_ROWS][2] = (uint16_t(*)[BF16_ROWS][2])space->panel[at / 2][half];
            for (int i = 0; i < 16; i++)
                row[i] = bits ? codes[i] + at * bits / 8 : (const uint8_t *)(space->rounded[i] + at);
            if (bits == 8) turn_fp8(row, ahead, panel);
            else turn_bf16(row, bits ? ahead : 0, panel);
        }
    }
    return turn;
}

/* sum[j] += scale * the products of columns [first, last) of the block with `columns` x rows, `step` values apart. */
INLINE void bf16_tile(int columns, const Bf16Space *space, int64_t first, int64_t last, const float *scale,
                      const uint16_t *x, int64_t step, float (*sum)[BF16_ROWS]) {
    __m512 part[BF16_COLUMNS][2];
    for (int j = 0; j < columns; j++) part[j][0] = part[j][1] = _mm512_setzero_ps();
    for (int64_t k = first; k < last; k += 2) {
        const __m512bh low = (__m512bh)_mm512_loadu_si512(space->panel[k / 2][0]);
        const __m512bh high = (__m512bh)_mm512_loadu_si512(space->panel[k / 2][16]);
        for (int j = 0; j < columns; j++) {
            int32_t pair;
            memcpy(&pair, x + j * step + k, 4);
            const __m512bh spread = (__m512bh)_mm512_set1_epi32(pair);
            part[j][0] = _mm512_dpbf16_ps(part[j][0], low, spread);
            part[j][1] = _mm512_dpbf16_ps(part[j][1], high, spread);
        }
    }
    for (int half = 0; half < 2; half++) {
        const __m512 factor = _mm512_loadu_ps(scale + 16 * half);
        for (int j = 0; j < columns; j++) {
            float *to = sum[j] + 16 * half;
            _mm512_storeu_ps(to, _mm512_fmadd_ps(factor, part[j][half], _mm512_loadu_ps(to)));
        }
    }
}

/* All turns of a block with `columns` x rows. */
INLINE void bf16_turns(int columns, const Bf16Space *space, int64_t width, int64_t turn, const uint16_t *x, int64_t step,
                       float (*sum)[BF16_ROWS]) {
    for (int64_t at = 0, t = 0; at < width; at += turn, t++)
        bf16_tile(columns, space, at, at + turn < width ? at + turn : width, space->scale[t], x, step, sum);
}

/* Rows [first, last), at most BF16_ROWS, with `columns` packed x rows, at most BF16_PASS. */
static inline void bf16_pass(const Matrix *w, int64_t first, int64_t last, const uint16_t *packed, int64_t columns, float *out,
                             int64_t out_stride, Bf16Space *space) {
    const int64_t step = bf16_width(w->k);
    memset(space->sum, 0, (size_t)columns * sizeof *space->sum);
    for (int64_t k = 0; k < w->k; k += BF16_TURN) {
        const int64_t width = w->k - k < BF16_TURN ? w->k - k : BF16_TURN, turn = bf16_panel(w, first, last, k, width, space);
        int64_t j = 0;
#define BF16_TAKE(count)                                                                                               \
    for (; j + (count) <= columns; j += (count))                                                                       \
    bf16_turns(count, space, bf16_width(width), turn, packed + j * step + k, step, space->sum + j)
        BF16_TAKE(BF16_COLUMNS);
        BF16_TAKE(8);
        BF16_TAKE(4);
        BF16_TAKE(2);
        BF16_TAKE(1);
#undef BF16_TAKE
    }
    for (int64_t j = 0; j < columns; j++)
        memcpy(out + j * out_stride, space->sum[j], (size_t)(last - first) * sizeof(float));
}

/* out[j * out_stride + n - first] = W[n] . x[j] for rows [first, last). */
static inline void bf16_block(const Matrix *w, int64_t first, int64_t last, const uint16_t *packed, int64_t columns,
                              int terms, float *out, int64_t out_stride, const void *next, float *space) {
    for (int64_t j = 0; j < columns; j += BF16_PASS)
        for (int64_t n = first; n < last; n += BF16_ROWS)
            bf16_pass(w, n, n + BF16_ROWS < last ? n + BF16_ROWS : last, packed + j * bf16_width(w->k),
                      columns - j < BF16_PASS ? columns - j : BF16_PASS, out + j * out_stride + (n - first), out_stride,
                      (Bf16Space *)space);
}

/* Floats of `space` that bf16_block needs. */
INLINE int64_t bf16_space(const Matrix *w, int64_t rows) { return sizeof(Bf16Space) / sizeof(float) + padded(w->k); }

#endif
