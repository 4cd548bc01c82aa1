/* Register tiles: products of a few weight rows with a few float rows. The inner loops of linear, experts and the products of MLA.
 *
 * Included by their *_cython.pyx, which hold the loops over tasks. Knows matrices and float rows, nothing of threads.
 *
 * dot:  out[j][n] = sum_k W[n][k] x[j][k]      LANES partial sums over k in steps of LANES, of each group of weights
 *                                              without its scale, then of the groups; then one fixed tree
 * mix:  out[j][k] = sum_n c[j][n] W[n][k]      in order of n
 *
 * The order of summation is the same for every caller, so a product does not depend on how many rows are multiplied
 * at once, nor on which thread does it, nor on whether weights are decoded on the way or to a block before (blocks.h).
 *
 * In this and the other headers of products `rows` are those of weights, `x_rows` those of x, and columns those of K.
 */
#ifndef DEEPZIG_TILES_H
#define DEEPZIG_TILES_H

#include "scratch.h"
#include "weights.h"

/* A dot tile holds TILE_ROWS weight rows x TILE_X_ROWS x rows in registers, or MOST_TILE_ROWS x 1. A mix tile holds MIX_OUTS
 * rows of out x MIX_VECTORS vectors, or, for half as many rows and fewer, twice as many vectors. */
#if REGISTERS == 32
#define TILE_ROWS 4
#define MOST_TILE_ROWS 8
#define TILE_X_ROWS 5
#define MIX_OUTS 8
#define MIX_VECTORS 2
#elif defined(__AVX2__)
#define TILE_ROWS 3
#define MOST_TILE_ROWS 4
#define TILE_X_ROWS 4
#define HELD_X_ROWS(sums) (14 - (sums)) /* 16 registers: one for a weight, one for what decodes it */
#define MIX_OUTS 4
#define MIX_VECTORS 2
#else
#define TILE_ROWS 2
#define MOST_TILE_ROWS 4
#define TILE_X_ROWS 4
#define MIX_OUTS 4
#define MIX_VECTORS 2
#endif
#ifndef HELD_X_ROWS
#define HELD_X_ROWS(sums) 0
#endif

INLINE int64_t padded(int64_t k) { return round_up(k, LANES); }

/* Floats from one row to the next in copies of x rows: rows a whole number of pages apart would displace each other in L1. */
INLINE int64_t copy_stride(int64_t k) { return padded(k) + 32; }

INLINE Matrix float_matrix(const float *values, int64_t n, int64_t k, int64_t row_stride) {
    Matrix w = {(int64_t)(intptr_t)values, 0, n, k, 4 * row_stride, F32, SCALE_NONE, k, 1, 0};
    return w;
}

/* ---- dot -------------------------------------------------------------------------------------------- */

/* part[i][j] += W[i, k..] . x[j][k..] of the columns that are decoded at once. A tile with few registers waits for its loads:
 * there x is loaded once for all rows, as far as registers are left. */
INLINE void tile_step(int format, int rows, int x_rows, const uint8_t *codes, int64_t row_bytes, int64_t k,
                      int64_t offset, const float *const *x, vfloat (*part)[TILE_X_ROWS]) {
    const int vectors = STEP_VECTORS(format), held = vectors > 1 ? 0 : HELD_X_ROWS(rows * x_rows);
    vfloat weight[4], value[TILE_X_ROWS];
    for (int j = 0; j < x_rows && j < held; j++) value[j] = in_register(vload(x[j] + k));
    for (int i = 0; i < rows; i++) {
        decode_step(format, codes + i * row_bytes, k, offset, weight);
        for (int v = 0; v < vectors; v++)
            for (int j = 0; j < x_rows; j++)
                part[i][j] += weight[v] * (j < held ? value[j] : vload(x[j] + k + v * LANES));
    }
}

/* out[j * out_stride + i] = sum_k W[row + i, k] * x[j][k] for i < rows, j < x_rows; weights are decoded on the way.
 * The same bytes of the next tile are prefetched while this one is computed. */
INLINE void dot_tile(int format, int rows, int x_rows, const Matrix *w, int64_t row, const float *const *x, float *out,
                     int64_t out_stride) {
    const int vectors = STEP_VECTORS(format);
    const int64_t bits = code_bits(format), line = 512 / bits; /* columns */
    const uint8_t *codes = codes_of(w, row);
    const int64_t ahead = rows * w->row_bytes;
    vfloat sum[MOST_TILE_ROWS][TILE_X_ROWS];
    int64_t scale[MOST_TILE_ROWS];
    vint largest = {0};
    for (int i = 0; i < rows; i++) scale[i] = first_scale(w, row + i);
    for (int i = 0; i < rows; i++)
        for (int j = 0; j < x_rows; j++) sum[i][j] = vset(0);
    for (int64_t k = 0, g = 0; k < w->k; g++) {
        const int64_t end = least(k + w->group_size, w->k);
        vfloat part[MOST_TILE_ROWS][TILE_X_ROWS];
        for (int i = 0; i < rows; i++)
            for (int j = 0; j < x_rows; j++) part[i][j] = vset(0);
        for (; k < end; k += vectors * LANES) {
            if ((k & (line - 1)) == 0)
                for (int i = 0; i < rows; i++) {
                    prefetch(codes + i * w->row_bytes + k * bits / 8 + ahead);
                    if (is_fp8(format)) take_magnitudes(codes + i * w->row_bytes + k, &largest);
                }
            tile_step(format, rows, x_rows, codes, w->row_bytes, k, w->offset, x, part);
        }
        if (format == FP8 && LOOKS_UP_FP8) __asm__("" : "+r"(g)); /* or gcc counts up every row's index in memory */
        for (int i = 0; i < rows; i++) {
            const vfloat factor = vset(scale_at(w, scale[i] + g));
            for (int j = 0; j < x_rows; j++) sum[i][j] += factor * part[i][j];
        }
    }
#if defined(__AVX512F__)
    if (rows == 4 && x_rows == 4 && format == F32) {
        vfloat flat[16];
        for (int i = 0; i < 16; i++) flat[i] = sum[i / 4][i % 4];
        const __m512 sums = (__m512)vsum16(flat);
        _mm_storeu_ps(out, _mm512_castps512_ps128(sums));
        _mm_storeu_ps(out + out_stride, _mm512_extractf32x4_ps(sums, 1));
        _mm_storeu_ps(out + 2 * out_stride, _mm512_extractf32x4_ps(sums, 2));
        _mm_storeu_ps(out + 3 * out_stride, _mm512_extractf32x4_ps(sums, 3));
        return;
    }
#endif
    for (int i = 0; i < rows; i++)
        for (int j = 0; j < x_rows; j++) out[j * out_stride + i] = vsum(sum[i][j]);
    if (__builtin_expect(is_fp8(format) && has_nan_magnitude(largest), 0))
        for (int i = 0; i < rows; i++)
            if (has_nan(w, row + i, row + i + 1))
                for (int j = 0; j < x_rows; j++) out[j * out_stride + i] = NAN;
}

/* Weight rows of a tile with so many x rows: more for one, fewer where tables of fp8 take the registers. */
INLINE int rows_of_tile(int format, int x_rows) {
    if (format == FP8 && LOOKS_UP_FP8) return x_rows < TILE_X_ROWS ? TILE_ROWS : TILE_ROWS / 2;
    return x_rows == 1 ? MOST_TILE_ROWS : TILE_ROWS;
}

/* Rows [first, last) of W against `x_rows` x rows, in tiles of constant size. */
INLINE void dot_rows_of(int format, int x_rows, const Matrix *w, int64_t first, int64_t last, const float *const *x,
                        float *out, int64_t out_stride) {
    const int tile_rows = rows_of_tile(format, x_rows);
    int64_t n = first;
    for (; n + tile_rows <= last; n += tile_rows)
        dot_tile(format, tile_rows, x_rows, w, n, x, out + (n - first), out_stride);
    for (; n < last; n++) dot_tile(format, 1, x_rows, w, n, x, out + (n - first), out_stride);
}

INLINE void dot_rows_as(int format, int x_rows, const Matrix *w, int64_t first, int64_t last, const float *const *x,
                        float *out, int64_t out_stride) {
    switch (x_rows) {
    case 1: dot_rows_of(format, 1, w, first, last, x, out, out_stride); break;
    case 2: dot_rows_of(format, 2, w, first, last, x, out, out_stride); break;
    case 3: dot_rows_of(format, 3, w, first, last, x, out, out_stride); break;
    case 4: dot_rows_of(format, 4, w, first, last, x, out, out_stride); break;
    default: dot_rows_of(format, TILE_X_ROWS, w, first, last, x, out, out_stride);
    }
}

/* out[j * out_stride + n - first] = W[n] . x[j] for x_rows <= TILE_X_ROWS; w must fit steps (fits_steps). */
static inline void dot_rows(const Matrix *w, int64_t first, int64_t last, const float *const *x, int x_rows, float *out,
                            int64_t out_stride) {
    switch (w->format) {
    case F32: dot_rows_as(F32, x_rows, w, first, last, x, out, out_stride); break;
    case F16: dot_rows_as(F16, x_rows, w, first, last, x, out, out_stride); break;
    case BF16: dot_rows_as(BF16, x_rows, w, first, last, x, out, out_stride); break;
    case FP8: dot_rows_as(FP8, x_rows, w, first, last, x, out, out_stride); break;
    case INT8: dot_rows_as(INT8, x_rows, w, first, last, x, out, out_stride); break;
#if HAS_FP8_FLOATS
    case TINY_FP8: dot_rows_as(TINY_FP8, x_rows, w, first, last, x, out, out_stride); break;
#endif
    default: dot_rows_as(INT4, x_rows, w, first, last, x, out, out_stride);
    }
}

/* ---- weighted sums of rows ------------------------------------------------------------------------------------ */

INLINE void mix_tile(int format, int vectors, int outs, const Matrix *w, int64_t first, int64_t last,
                     const float *const *c, int64_t k, float *out, int64_t out_stride) {
    const int64_t groups = parts_of(w->k, w->group_size);
    const int step = format == FP8 && vectors % STEP_VECTORS(FP8) == 0 ? STEP_VECTORS(FP8) : 1;
    vfloat sum[MIX_OUTS][4 * MIX_VECTORS];
    int64_t group[4 * MIX_VECTORS]; /* of each vector, in a row */
    for (int v = 0; v < vectors; v++) group[v] = (k + v * LANES) / w->group_size;
    for (int j = 0; j < outs; j++)
        for (int v = 0; v < vectors; v++) sum[j][v] = vload(out + j * out_stride + k + v * LANES);
    const int one_group = group[0] == group[vectors - 1];
    int64_t block = first / w->block_rows;
    for (int64_t n = first; n < last; n++) {
        const uint8_t *row = codes_of(w, n);
        vfloat coefficient[MIX_OUTS], factor = vset(1);
        if (n == (block + 1) * w->block_rows) block++;
        for (int j = 0; j < outs; j++) coefficient[j] = vset(c[j][n - first]);
#pragma GCC unroll 8 /* or sums live in memory */
        for (int at = 0; at < vectors; at += step) {
            if (format >= FP8 && (at == 0 || !one_group))
                factor = vset(scale_at(w, block * groups + group[at]));
            vfloat weight[4];
            if (step == 1) weight[0] = decode(format, row, k + at * LANES, w->offset);
            else decode_step(format, row, k + at * LANES, w->offset, weight);
            for (int v = at; v < at + step; v++) {
                if (format >= FP8) weight[v - at] *= factor;
                for (int j = 0; j < outs; j++) sum[j][v] += coefficient[j] * weight[v - at];
            }
        }
    }
    for (int j = 0; j < outs; j++)
        for (int v = 0; v < vectors; v++) vstore(out + j * out_stride + k + v * LANES, sum[j][v]);
}

INLINE void mix_rows_of(int format, int outs, const Matrix *w, int64_t first, int64_t last, const float *const *c,
                        int64_t width, float *out, int64_t out_stride) {
    const int vectors = outs == 1 ? 4 * MIX_VECTORS : 2 * outs <= MIX_OUTS ? 2 * MIX_VECTORS : MIX_VECTORS;
    int64_t k = 0;
    for (; k + vectors * LANES <= width; k += vectors * LANES)
        mix_tile(format, vectors, outs, w, first, last, c, k, out, out_stride);
    for (; k < width; k += LANES) mix_tile(format, 1, outs, w, first, last, c, k, out, out_stride);
}

INLINE void mix_rows_as(int format, int outs, const Matrix *w, int64_t first, int64_t last, const float *const *c,
                        int64_t width, float *out, int64_t out_stride) {
    switch (outs) {
    case 1: mix_rows_of(format, 1, w, first, last, c, width, out, out_stride); break;
    case 2: mix_rows_of(format, 2, w, first, last, c, width, out, out_stride); break;
    case 3: mix_rows_of(format, 3, w, first, last, c, width, out, out_stride); break;
#if MIX_OUTS > 4
    case 4: mix_rows_of(format, 4, w, first, last, c, width, out, out_stride); break;
    case 5: mix_rows_of(format, 5, w, first, last, c, width, out, out_stride); break;
    case 6: mix_rows_of(format, 6, w, first, last, c, width, out, out_stride); break;
    case 7: mix_rows_of(format, 7, w, first, last, c, width, out, out_stride); break;
#endif
    default: mix_rows_of(format, MIX_OUTS, w, first, last, c, width, out, out_stride);
    }
}

/* out[j * out_stride + k] += sum_n c[j][n - first] W[n][k] for n in [first, last), k < width, outs <= MIX_OUTS;
 * w must fit steps and width a multiple of LANES. */
static inline void mix_rows(const Matrix *w, int64_t first, int64_t last, const float *const *c, int outs,
                            int64_t width, float *out, int64_t out_stride) {
    switch (w->format) {
    case F32: mix_rows_as(F32, outs, w, first, last, c, width, out, out_stride); break;
    case F16: mix_rows_as(F16, outs, w, first, last, c, width, out, out_stride); break;
    case BF16: mix_rows_as(BF16, outs, w, first, last, c, width, out, out_stride); break;
    case FP8: mix_rows_as(FP8, outs, w, first, last, c, width, out, out_stride); break;
    case INT8: mix_rows_as(INT8, outs, w, first, last, c, width, out, out_stride); break;
    default: mix_rows_as(INT4, outs, w, first, last, c, width, out, out_stride);
    }
}

#endif
