/* Products of weight rows with any number of float rows: `dot_block`, called by linear, experts and expand_value.
 *
 * Few x rows meet weights that are decoded on the way (tiles.h). For many, blocks of decoded weights pass all of them.
 * Both add up in the order that tiles.h states, so that a product does not depend on which was taken.
 */
#ifndef DEEPZIG_BLOCKS_H
#define DEEPZIG_BLOCKS_H

#include "tiles.h"

/* A block of weights, as floats without their scales, stays in L1 while PASS_COLUMNS x rows go by. Between blocks the sums
 * of each weight row and x row wait in memory as vectors. */
#define BLOCK_ROWS (4 * TILE_ROWS)
#define BLOCK_WIDTH 256
#define PASS_COLUMNS 64

typedef struct {
    float weights[BLOCK_ROWS][BLOCK_WIDTH];
    vfloat part[PASS_COLUMNS][BLOCK_ROWS]; /* of a group that goes on in the next block */
    vfloat sum[PASS_COLUMNS][BLOCK_ROWS];
} DotSpace;

/* A stretch of columns of W that lies in one block and in one group. */
typedef struct {
    const float *weights;     /* of the block's first row */
    int64_t step;             /* floats from one row to the next */
    int64_t k, width;         /* first column, and how many */
    int opens, closes;        /* its group */
    float factor[BLOCK_ROWS]; /* of the group, for each row */
} Stretch;

/* `rows` rows of the block, from `row` on, against `columns` x rows, of which the first is the pass's `column`. */
INLINE void stretch_tile(int rows, int columns, const Stretch *s, int row, const float *const *x, DotSpace *space,
                         int64_t column) {
    vfloat part[TILE_ROWS][TILE_COLUMNS];
    for (int i = 0; i < rows; i++)
        for (int j = 0; j < columns; j++) part[i][j] = s->opens ? vset(0) : space->part[column + j][row + i];
    const float *weights = s->weights + row * s->step;
    for (int64_t k = 0; k < s->width; k += LANES)
        for (int i = 0; i < rows; i++) {
            const vfloat weight = vload(weights + i * s->step + k);
            for (int j = 0; j < columns; j++) part[i][j] += weight * vload(x[j] + s->k + k);
        }
    for (int i = 0; i < rows; i++) {
        const vfloat factor = vset(s->factor[row + i]);
        for (int j = 0; j < columns; j++)
            if (s->closes)
                space->sum[column + j][row + i] += factor * part[i][j];
            else
                space->part[column + j][row + i] = part[i][j];
    }
}

INLINE void stretch_rows(int columns, const Stretch *s, int rows, const float *const *x, DotSpace *space,
                         int64_t column) {
    int row = 0;
    for (; row + TILE_ROWS <= rows; row += TILE_ROWS) stretch_tile(TILE_ROWS, columns, s, row, x, space, column);
    for (; row < rows; row++) stretch_tile(1, columns, s, row, x, space, column);
}

/* All x rows of a pass against the block's rows. */
static inline void stretch_pass(const Stretch *s, int rows, const float *const *x, int64_t columns, DotSpace *space) {
    int64_t j = 0;
    for (; j + TILE_COLUMNS <= columns; j += TILE_COLUMNS) stretch_rows(TILE_COLUMNS, s, rows, x + j, space, j);
    switch (columns - j) {
    case 1: stretch_rows(1, s, rows, x + j, space, j); break;
    case 2: stretch_rows(2, s, rows, x + j, space, j); break;
    case 3: stretch_rows(3, s, rows, x + j, space, j); break;
#if TILE_COLUMNS > 4
    case 4: stretch_rows(4, s, rows, x + j, space, j); break;
#endif
    }
}

/* Weights k to k + width of a row without their scales. */
static inline void decode_weights(const Matrix *w, int64_t row, int64_t k, int64_t width, float *out) {
    const uint8_t *codes = (const uint8_t *)w->codes + row * w->row_bytes;
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
    default: DECODE_AS(INT4);
    }
#undef DECODE_AS
}

/* Weight rows [first, first + rows), rows <= BLOCK_ROWS, of an even w against columns <= PASS_COLUMNS x rows. */
static inline void dot_pass(const Matrix *w, int64_t first, int rows, const float *const *x, int64_t columns, float *out,
                            int64_t out_stride, DotSpace *space) {
    Stretch s = {&space->weights[0][0], BLOCK_WIDTH, 0, 0, 0, 0, {0}};
    int64_t scale[BLOCK_ROWS], group = 0;
    for (int64_t j = 0; j < columns; j++)
        for (int i = 0; i < rows; i++) space->sum[j][i] = vset(0);
    for (int i = 0; i < rows; i++) scale[i] = first_scale(w, first + i);
    for (int64_t block = 0; block < w->k; block += BLOCK_WIDTH) {
        const int64_t stop = block + BLOCK_WIDTH < w->k ? block + BLOCK_WIDTH : w->k;
        if (w->format != F32)
            for (int i = 0; i < rows; i++) decode_weights(w, first + i, block, stop - block, space->weights[i]);
        for (s.k = block; s.k < stop; s.k += s.width) {
            const int64_t end = (group + 1) * w->group_size;
            s.opens = s.k == group * w->group_size;
            s.closes = end <= stop || stop == w->k;
            s.width = (end < stop ? end : stop) - s.k;
            if (w->format == F32) {
                s.weights = (const float *)((const uint8_t *)w->codes + first * w->row_bytes) + s.k;
                s.step = w->row_bytes / 4;
            } else {
                s.weights = &space->weights[0][s.k - block];
            }
            for (int i = 0; i < rows; i++)
                s.factor[i] = decode_scale((int)w->format, scale_at(w, scale[i] + group));
            stretch_pass(&s, rows, x, columns, space);
            group += s.closes;
        }
    }
    for (int64_t j = 0; j < columns; j++) {
        float *sums = out + j * out_stride;
        int i = 0;
        for (; i + 4 <= rows; i += 4) vsum4(&space->sum[j][i], sums + i);
        for (; i < rows; i++) sums[i] = vsum(space->sum[j][i]);
    }
    for (int i = 0; w->format == FP8 && i < rows; i++)
        if (has_nan(w, first + i, first + i + 1))
            for (int64_t j = 0; j < columns; j++) out[j * out_stride + i] = NAN;
}

/* Floats of `space` that dot_block needs. */
INLINE int64_t dot_space(const Matrix *w) {
    return (int64_t)(sizeof(DotSpace) / sizeof(float)) + (is_even(w) ? 0 : BLOCK_ROWS * padded(w->k));
}

/* out[j * out_stride + n - first] = W[n] . x[j] for rows [first, last) and any number of columns. x rows must end in zeros
 * up to padded(K) if w is not even. */
static inline void dot_block(const Matrix *w, int64_t first, int64_t last, const float *const *x, int64_t columns,
                             float *out, int64_t out_stride, float *space) {
    if (!is_even(w)) {
        const int64_t width = padded(w->k);
        float *rows = space + sizeof(DotSpace) / sizeof(float);
        for (int64_t n = first; n < last; n += BLOCK_ROWS) {
            const int64_t count = last - n < BLOCK_ROWS ? last - n : BLOCK_ROWS;
            for (int64_t i = 0; i < count; i++) {
                dequantize_row(w, n + i, rows + i * width);
                for (int64_t k = w->k; k < width; k++) rows[i * width + k] = 0;
            }
            const Matrix decoded = float_matrix(rows, count, width, width);
            dot_block(&decoded, 0, count, x, columns, out + (n - first), out_stride, space);
        }
    } else if (columns <= TILE_COLUMNS) {
        dot_rows(w, first, last, x, (int)columns, out, out_stride);
    } else if (columns <= FEW_COLUMNS && w->format != FP8 && w->format != INT4) { /* cheap to decode once more */
        dot_few(w, first, last, x, columns, out, out_stride);
    } else {
        for (int64_t j = 0; j < columns; j += PASS_COLUMNS)
            for (int64_t n = first; n < last; n += BLOCK_ROWS)
                dot_pass(w, n, (int)(last - n < BLOCK_ROWS ? last - n : BLOCK_ROWS), x + j,
                         columns - j < PASS_COLUMNS ? columns - j : PASS_COLUMNS, out + j * out_stride + (n - first),
                         out_stride, (DotSpace *)space);
    }
}

#endif
