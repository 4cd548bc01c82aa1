/* Products of weights with float rows in registers whose lanes are weight rows: prompts, where nothing else is faster.
 *
 * Included by ways.h. Knows matrices and float rows, nothing of threads. Blocks of FLOAT_ROWS weight rows x FLOAT_BLOCK
 * columns are decoded and transposed, so that one vector holds a column of LANES rows, and stay in L1 while x rows go by, each
 * of whose columns is spread over all lanes. So sums need no adding across lanes, as those of blocks.h do, and have another
 * order: the columns of a block that share a scale, one after the other, then these sums times their scales. A row depends
 * on no other row.
 */
#ifndef DEEPZIG_FLOAT_LANES_H
#define DEEPZIG_FLOAT_LANES_H

#include "blocks.h"

#define FLOAT_ROWS (2 * LANES)
#define FLOAT_BLOCK (LANES == 16 ? 128 : 256)
#define FLOAT_PASS 128 /* x rows that meet a block before it is made again */

/* Most x rows at once: what registers hold sums for, beside the operands; and each number of them. */
#if REGISTERS == 32
#define LANE_X_ROWS 12
#define EACH_COUNT(take) take(1) take(2) take(3) take(4) take(5) take(6) take(7) take(8) take(9) take(10) take(11) take(12)
#else
#define LANE_X_ROWS 6
#define EACH_COUNT(take) take(1) take(2) take(3) take(4) take(5) take(6)
#endif

/* How many of so many x rows to take next: parts as even as can be, since few sums at once wait for each other. */
INLINE int64_t even_part(int64_t x_rows) {
    const int64_t parts = parts_of(x_rows, LANE_X_ROWS);
    return parts_of(x_rows, parts);
}

typedef struct {
    float panel[FLOAT_BLOCK][FLOAT_ROWS];
    float decoded[LANES][FLOAT_BLOCK];
    float sum[FLOAT_PASS][FLOAT_ROWS];
    float rows[]; /* FLOAT_ROWS whole rows, of weights that cannot be decoded in steps */
} FloatSpace;

/* Codes that are transposed together, as 32 bits, and then decoded, where that is faster; 0: they are decoded first. */
INLINE int transposed_codes(const Matrix *w, int64_t width) {
    const int codes = w->format == INT4 ? 8 : w->format >= FP8 ? 4 : w->format == BF16 ? 2 : 0;
    return codes && width % (codes * LANES) == 0 ? codes : 0;
}

/* 32 bits of codes in each lane, the first in the lowest, as vectors of values; returns how many. flip: bits of int8's and
 * int4's codes that make them numbers with sign. */
INLINE int spread_codes(int format, vint codes, vint flip, vfloat *value) {
    if (format == INT8 || format == INT4) {
        const int bits = code_bits(format), count = 32 / bits;
        codes ^= flip;
        for (int b = 0; b < count; b++)
            value[b] = __builtin_convertvector((codes << (32 - bits - bits * b)) >> (32 - bits), vfloat);
        return count;
    }
#if LOOKS_UP_FP8
    if (format == FP8) {
        const __m512i lane = _mm512_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28, 32, 36, 40, 44, 48, 52, 56, 60);
        const __m512i place = _mm512_add_epi8(_mm512_mullo_epi32(lane, _mm512_set1_epi32(0x01010101)),
                                              _mm512_set1_epi32(0x40000000)); /* byte 2 of low, byte 3 of high */
        __m512i low, high;
        fp8_bytes((__m512i)codes, &low, &high);
        for (int b = 0; b < 4; b++) {
            const __m512i from = _mm512_add_epi8(place, _mm512_set1_epi8((char)b));
            value[b] = (vfloat)_mm512_maskz_permutex2var_epi8(0xcccccccccccccccc, low, from, high);
        }
        return 4;
    }
#else
    if (format == FP8) {
        for (int b = 0; b < 4; b++) value[b] = value_of(FP8, codes << (24 - 8 * b));
        return 4;
    }
#endif
    if (format == BF16) {
        value[0] = (vfloat)(codes << 16);
        value[1] = (vfloat)(codes & (int32_t)0xffff0000);
        return 2;
    }
    value[0] = (vfloat)codes;
    return 1;
}

/* LANES rows of `steps` times 32 bits, of codes or, F32, of values, transposed into a panel of values. */
INLINE void transpose_rows(int format, const uint8_t *const *row, int64_t steps, vint flip, float (*panel)[FLOAT_ROWS]) {
    for (int64_t at = 0; at < steps; at += LANES) {
        vfloat value[LANES], column[LANES], spread[8];
        for (int i = 0; i < LANES; i++) memcpy(value + i, row[i] + 4 * at, sizeof *value); /* codes lie anywhere */
        transpose(value, column);
        for (int c = 0; c < LANES; c++) {
            const int count = spread_codes(format, (vint)column[c], flip, spread);
            for (int b = 0; b < count; b++) vstore(panel[count * (at + c) + b], spread[b]);
        }
    }
}

/* Columns [k, k + width) of LANES weight rows, from row `first` on, as panel; rows from `last` on are as the one before.
 * The same columns of the rows that are needed next are prefetched. */
INLINE void transpose_floats(const Matrix *w, int64_t first, int64_t last, int64_t k, int64_t width,
                             float (*panel)[FLOAT_ROWS], float (*decoded)[FLOAT_BLOCK]) {
    const int together = transposed_codes(w, width);
    const vint flip = (vint){0} + (int32_t)(w->format == INT4 ? 0x88888888 : w->offset ? 0x80808080 : 0);
    const uint8_t *row[LANES];
    for (int i = 0; i < LANES; i++) {
        const int64_t n = least(first + i, last - 1);
        const uint8_t *codes = codes_of(w, n);
        row[i] = w->format == F32 ? codes + 4 * k : (const uint8_t *)decoded[i];
        if (together) row[i] = codes + 4 * k / together;
        prefetch_columns(w, n + FLOAT_ROWS, k, width);
        if (!together && w->format != F32) decode_weights(w, n, k, width, decoded[i]);
    }
    switch (together ? w->format : F32) {
    case BF16: transpose_rows(BF16, row, width / 2, flip, panel); break;
    case FP8: transpose_rows(FP8, row, width / 4, flip, panel); break;
    case INT8: transpose_rows(INT8, row, width / 4, flip, panel); break;
    case INT4: transpose_rows(INT4, row, width / 8, flip, panel); break;
    default: transpose_rows(F32, row, width, flip, panel);
    }
}

/* sum[j] += scale * the products of columns [first, last) of a block with `x_rows` x rows, of which it begins with k. */
INLINE void float_tile(int x_rows, float (*panel)[FLOAT_ROWS], int64_t first, int64_t last, const float *scale,
                       const float *const *x, int64_t k, float (*sum)[FLOAT_ROWS]) {
    vfloat part[LANE_X_ROWS][2];
    for (int j = 0; j < x_rows; j++) part[j][0] = part[j][1] = vset(0);
    for (int64_t at = first; at < last; at++) {
        const vfloat low = vload(panel[at]), high = vload(panel[at] + LANES);
        for (int j = 0; j < x_rows; j++) {
            const vfloat spread = vset(x[j][k + at]);
            part[j][0] += low * spread;
            part[j][1] += high * spread;
        }
    }
    for (int half = 0; half < 2; half++) {
        const vfloat factor = vload(scale + half * LANES);
        for (int j = 0; j < x_rows; j++) {
            float *to = sum[j] + half * LANES;
            vstore(to, vload(to) + factor * part[j][half]);
        }
    }
}

/* Rows [first, last), at most FLOAT_ROWS, of a w that fits steps with `x_rows` x rows, at most FLOAT_PASS. */
static inline void float_pass(const Matrix *w, int64_t first, int64_t last, const float *const *x, int64_t x_rows,
                              FloatSpace *space) {
    const int format = (int)w->format;
    float scale[FLOAT_ROWS];
    int64_t of_row[FLOAT_ROWS];
    for (int i = 0; i < FLOAT_ROWS; i++) of_row[i] = first_scale(w, least(first + i, last - 1));
    memset(space->sum, 0, (size_t)x_rows * sizeof *space->sum);
    for (int64_t k = 0; k < w->k; k += FLOAT_BLOCK) {
        const int64_t width = least(w->k - k, FLOAT_BLOCK);
        for (int half = 0; half < FLOAT_ROWS; half += LANES)
            transpose_floats(w, first + half, last, k, width, (float(*)[FLOAT_ROWS]) & space->panel[0][half], space->decoded);
        for (int64_t at = 0, end; at < width; at = end) {
            const int64_t group = (k + at) / w->group_size, group_end = (group + 1) * w->group_size - k;
            end = least(group_end, width);
            for (int i = 0; i < FLOAT_ROWS; i++) scale[i] = scale_at(w, of_row[i] + group);
            for (int64_t j = 0, count; j < x_rows; j += count) {
                count = even_part(x_rows - j);
#define TAKE(count)                                                                                                    \
    case count: float_tile(count, space->panel, at, end, scale, x + j, k, space->sum + j); break;
                switch (count) { EACH_COUNT(TAKE) }
#undef TAKE
            }
        }
    }
    for (int64_t i = 0; format == FP8 && i < last - first; i++)
        if (has_nan(w, first + i, first + i + 1))
            for (int64_t j = 0; j < x_rows; j++) space->sum[j][i] = NAN;
}

/* Floats of `space` that float_lanes needs. */
INLINE int64_t float_lanes_space(const Matrix *w) {
    return (int64_t)(sizeof(FloatSpace) / sizeof(float)) + (fits_steps(w) ? 0 : FLOAT_ROWS * padded(w->k));
}

/* out[j * out_stride + n - first] = W[n] . x[j] for rows [first, last). */
static inline void float_lanes(const Matrix *w, int64_t first, int64_t last, const float *const *x, int64_t x_rows,
                               float *out, int64_t out_stride, FloatSpace *space) {
    const int64_t width = padded(w->k);
    for (int64_t n = first; n < last; n += FLOAT_ROWS) {
        const int64_t end = least(n + FLOAT_ROWS, last);
        Matrix decoded;
        if (!fits_steps(w)) {
            for (int64_t i = n; i < end; i++) dequantize_row(w, i, space->rows + (i - n) * width);
            decoded = float_matrix(space->rows, end - n, w->k, width);
        }
        for (int64_t j = 0; j < x_rows; j += FLOAT_PASS) {
            const int64_t count = least(x_rows - j, FLOAT_PASS);
            if (fits_steps(w)) float_pass(w, n, end, x + j, count, space);
            else float_pass(&decoded, 0, end - n, x + j, count, space);
            for (int64_t c = 0; c < count; c++)
                memcpy(out + (j + c) * out_stride + (n - first), space->sum[c], (size_t)(end - n) * sizeof(float));
        }
    }
}

#endif
