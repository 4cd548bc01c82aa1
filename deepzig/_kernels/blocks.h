/* Products of weight rows with any number of float rows: `dot_block`, called by linear, experts and absorb_value.
 *
 * Few x rows meet weights that are decoded on the way (tiles.h). For many, blocks of decoded weights pass all of them.
 * Both add up in the order that tiles.h states, so that a product does not depend on which was taken.
 */
#ifndef DEEPZIG_BLOCKS_H
#define DEEPZIG_BLOCKS_H

#include "tiles.h"

/* A block of weights, as floats without their scales, stays in L1 while PASS_X_ROWS x rows go by. Between blocks the sums
 * of each weight row and x row wait in memory as vectors. Where groups have scales of their own, registers hold the sums of
 * a group beside those of the groups before, if there are enough. */
#if defined(__AVX512F__)
#define BLOCK_ROWS 8
#define BLOCK_WIDTH 512
#define GROUP_X_ROWS 4
#else
#define BLOCK_ROWS (4 * TILE_ROWS)
#define BLOCK_WIDTH 256
#define GROUP_X_ROWS 3
#endif
#define PASS_X_ROWS 64

#define FEW_AT_ONCE 4 /* x rows; four by four sums are added up by vsum16 */

typedef struct {
    float weights[BLOCK_ROWS][BLOCK_WIDTH];
    float factor[BLOCK_WIDTH / LANES][BLOCK_ROWS]; /* of each group of the block, if it has several */
    vfloat sum[PASS_X_ROWS][BLOCK_ROWS];
} DotSpace;

typedef struct {
    const float *weights;     /* of its first row */
    int64_t stride;           /* floats from one row to the next */
    int64_t k, width, group;  /* first column, and how many; columns of a group, or 0: one scale a row */
    int rows;
} Block;

/* Block.group: columns that have a scale of their own. */
INLINE int64_t block_group(const Matrix *w) { return w->group_size < w->k ? w->group_size : 0; }

/* `rows` rows of the block, from `row` on, against `x_rows` x rows, of which the first is the pass's `x_row`. */
INLINE void block_tile(int grouped, int rows, int x_rows, const Block *b, int row, const float *const *x,
                       DotSpace *space, int64_t x_row) {
    vfloat sum[TILE_ROWS][TILE_X_ROWS], part[TILE_ROWS][TILE_X_ROWS];
    const float *weights = b->weights + row * b->stride;
    for (int i = 0; i < rows; i++)
        for (int j = 0; j < x_rows; j++) sum[i][j] = b->k ? space->sum[x_row + j][row + i] : vset(0);
    if (!grouped) {
        for (int64_t k = 0; k < b->width; k += LANES)
            for (int i = 0; i < rows; i++) {
                const vfloat weight = vload(weights + i * b->stride + k);
                for (int j = 0; j < x_rows; j++) sum[i][j] += weight * vload(x[j] + b->k + k);
            }
    } else {
        for (int64_t group = 0, k = 0; k < b->width; group++) {
            for (int i = 0; i < rows; i++)
                for (int j = 0; j < x_rows; j++) part[i][j] = vset(0);
            for (const int64_t end = least(k + b->group, b->width); k < end; k += LANES)
                for (int i = 0; i < rows; i++) {
                    const vfloat weight = vload(weights + i * b->stride + k);
                    for (int j = 0; j < x_rows; j++) part[i][j] += weight * vload(x[j] + b->k + k);
                }
            for (int i = 0; i < rows; i++) {
                const vfloat factor = vset(space->factor[group][row + i]);
                for (int j = 0; j < x_rows; j++) sum[i][j] += factor * part[i][j];
            }
        }
    }
    for (int i = 0; i < rows; i++)
        for (int j = 0; j < x_rows; j++) space->sum[x_row + j][row + i] = sum[i][j];
}

INLINE void block_tiles(int grouped, int x_rows, const Block *b, const float *const *x, DotSpace *space, int64_t x_row) {
    int row = 0;
    for (; row + TILE_ROWS <= b->rows; row += TILE_ROWS)
        block_tile(grouped, TILE_ROWS, x_rows, b, row, x, space, x_row);
    for (; row < b->rows; row++) block_tile(grouped, 1, x_rows, b, row, x, space, x_row);
}

/* The block's rows against all x rows of a pass. */
INLINE void block_pass(int grouped, const Block *b, const float *const *x, int64_t x_rows, DotSpace *space) {
    const int at_once = grouped ? GROUP_X_ROWS : TILE_X_ROWS;
    int64_t j = 0;
    for (; j + at_once <= x_rows; j += at_once) block_tiles(grouped, at_once, b, x + j, space, j);
    for (; j + 2 <= x_rows; j += 2) block_tiles(grouped, 2, b, x + j, space, j);
    if (j < x_rows) block_tiles(grouped, 1, b, x + j, space, j);
}

/* Columns k to k + width of a row. */
INLINE void prefetch_columns(const Matrix *w, int64_t row, int64_t k, int64_t width) {
    const int64_t bits = code_bits((int)w->format);
    prefetch_range(codes_of(w, row) + k * bits / 8, width * bits / 8);
}

/* Weights k to k + width of a row without their scales. */
static inline void decode_weights(const Matrix *w, int64_t row, int64_t k, int64_t width, float *out) {
    const uint8_t *codes = codes_of(w, row);
#define DECODE_AS(format)                                                                                              \
    for (int64_t i = 0; i < width; i += LANES * STEP_VECTORS(format)) {                                                \
        vfloat weight[4];                                                                                              \
        decode_step(format, codes, k + i, w->offset, weight);                                                          \
        for (int v = 0; v < STEP_VECTORS(format); v++) vstore(out + i + v * LANES, weight[v]);                         \
    }
    switch (w->format) {
    case F16: DECODE_AS(F16); break;
    case BF16: DECODE_AS(BF16); break;
    case FP8: DECODE_AS(FP8); break;
    case INT8: DECODE_AS(INT8); break;
#if HAS_FP8_FLOATS
    case TINY_FP8: DECODE_AS(TINY_FP8); break;
#endif
    default: DECODE_AS(INT4);
    }
#undef DECODE_AS
}

/* Weight rows [first, first + rows), rows <= BLOCK_ROWS, of a w that fits steps against x_rows <= PASS_X_ROWS x rows. */
static inline void dot_pass(const Matrix *w, int64_t first, int rows, const float *const *x, int64_t x_rows, float *out,
                            int64_t out_stride, DotSpace *space) {
    Block b = {&space->weights[0][0], BLOCK_WIDTH, 0, 0, block_group(w), rows};
    const int64_t width = b.group ? BLOCK_WIDTH / b.group * b.group : BLOCK_WIDTH;
    int64_t scale[BLOCK_ROWS];
    for (int i = 0; i < rows; i++) scale[i] = first_scale(w, first + i);
    for (; b.k < w->k; b.k += width) {
        b.width = least(width, w->k - b.k);
        for (int i = 0; i < rows; i++) prefetch_columns(w, first + BLOCK_ROWS + i, b.k, b.width);
        if (w->format == F32) {
            b.weights = (const float *)codes_of(w, first) + b.k;
            b.stride = w->row_bytes / 4;
        } else {
            for (int i = 0; i < rows; i++) decode_weights(w, first + i, b.k, b.width, space->weights[i]);
        }
        if (b.group) {
            for (int i = 0; i < rows; i++)
                for (int64_t g = 0; g * b.group < b.width; g++)
                    space->factor[g][i] = scale_at(w, scale[i] + b.k / b.group + g);
            block_pass(1, &b, x, x_rows, space);
        } else {
            block_pass(0, &b, x, x_rows, space);
        }
    }
    for (int i = 0; !b.group && w->scale_format != SCALE_NONE && i < rows; i++) {
        const vfloat factor = vset(scale_at(w, scale[i]));
        for (int64_t j = 0; j < x_rows; j++) space->sum[j][i] *= factor;
    }
    for (int64_t j = 0; j < x_rows; j++) {
        float *sums = out + j * out_stride;
        int i = 0;
#if defined(__AVX512F__)
        if (rows == 8 && j + 1 < x_rows) { /* two x rows; vsum16 leaves the sum of flat[4 i + j] in lane 4 j + i */
            vfloat flat[16];
            for (int k = 0; k < 16; k++) flat[k] = space->sum[j + k % 4 / 2][k % 2 * 4 + k / 4];
            const __m512 pair = (__m512)vsum16(flat);
            _mm256_storeu_ps(sums, _mm512_castps512_ps256(pair));
            _mm256_storeu_ps(sums + out_stride, _mm512_extractf32x8_ps(pair, 1));
            j++;
            continue;
        }
#endif
        for (; i + 4 <= rows; i += 4) vsum4(&space->sum[j][i], sums + i);
        for (; i < rows; i++) sums[i] = vsum(space->sum[j][i]);
    }
    for (int i = 0; is_fp8((int)w->format) && i < rows; i++)
        if (has_nan(w, first + i, first + i + 1))
            for (int64_t j = 0; j < x_rows; j++) out[j * out_stride + i] = NAN;
}

/* Up to so many x rows weights are decoded for FEW_AT_ONCE of them, since that costs less than a block. */
INLINE int few_x_rows(int format) {
    const int is_costly = format == INT4 || (format == FP8 && !LOOKS_UP_FP8); /* to decode again and again */
    return is_costly ? 0 : 16;
}

/* dot_rows for more x rows, FEW_AT_ONCE at a time: a block's weight rows, which stay in L1, are decoded for each of these. */
static inline void dot_few(const Matrix *w, int64_t first, int64_t last, const float *const *x, int64_t x_rows,
                           float *out, int64_t out_stride) {
    for (int64_t n = first; n < last; n += BLOCK_ROWS)
        for (int64_t j = 0; j < x_rows; j += FEW_AT_ONCE)
            dot_rows(w, n, least(n + BLOCK_ROWS, last), x + j, (int)least(x_rows - j, FEW_AT_ONCE),
                     out + j * out_stride + (n - first), out_stride);
}

/* Floats of `space` that dot_block needs. */
INLINE int64_t dot_space(const Matrix *w) {
    return (int64_t)(sizeof(DotSpace) / sizeof(float)) + (fits_steps(w) ? 0 : BLOCK_ROWS * padded(w->k));
}

/* out[j * out_stride + n - first] = W[n] . x[j] for rows [first, last) and any number of x rows, which must end in zeros
 * up to padded(K) if w does not fit steps. */
static inline void dot_block(const Matrix *w, int64_t first, int64_t last, const float *const *x, int64_t x_rows,
                             float *out, int64_t out_stride, float *space) {
    if (!fits_steps(w)) {
        const int64_t width = padded(w->k);
        float *rows = space + sizeof(DotSpace) / sizeof(float);
        for (int64_t n = first; n < last; n += BLOCK_ROWS) {
            const int64_t count = least(last - n, BLOCK_ROWS);
            for (int64_t i = 0; i < count; i++) {
                dequantize_row(w, n + i, rows + i * width);
                for (int64_t k = w->k; k < width; k++) rows[i * width + k] = 0;
            }
            const Matrix decoded = float_matrix(rows, count, width, width);
            dot_block(&decoded, 0, count, x, x_rows, out + (n - first), out_stride, space);
        }
    } else if (x_rows <= TILE_X_ROWS) {
        dot_rows(w, first, last, x, (int)x_rows, out, out_stride);
    } else if (x_rows <= few_x_rows((int)w->format) || block_group(w) > BLOCK_WIDTH) { /* or no block holds a group */
        dot_few(w, first, last, x, x_rows, out, out_stride);
    } else {
        for (int64_t j = 0; j < x_rows; j += PASS_X_ROWS)
            for (int64_t n = first; n < last; n += BLOCK_ROWS)
                dot_pass(w, n, (int)least(last - n, BLOCK_ROWS), x + j, least(x_rows - j, PASS_X_ROWS),
                         out + j * out_stride + (n - first), out_stride, (DotSpace *)space);
    }
}

#endif
