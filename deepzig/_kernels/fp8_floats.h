/* fp8 weights against float rows where codes are not looked up: decoding on AVX2, and AVX512 without VBMI.
 *
 * Included by ways.h. Knows matrices and float rows, nothing of threads. A code's bits, moved to a float's place, are its value
 * times 2^-120; to multiply each weight by 2^120 costs as much as the product itself. So each row of x is multiplied once, by
 * 2^120 over a unit: the power of two in its largest number, at least 2^-6. The unit multiplies the sums. What is multiplied and
 * added, and in which order, is as in blocks.h, and so are the bits, unless a product or a sum times its scale is below
 * 2^-126 units, or a result above 2^122.
 */
#ifndef DEEPZIG_FP8_FLOATS_H
#define DEEPZIG_FP8_FLOATS_H

#include "word_lanes.h"

INLINE int takes_fp8_floats(const Matrix *w) { return HAS_FP8_FLOATS && w->format == FP8 && fits_steps(w); }

#if HAS_FP8_FLOATS

/* A packed x row: its numbers, then what multiplies their sums. */
INLINE int64_t fp8_float_row_bytes(const Matrix *w) { return copy_stride(w->k) * (int64_t)sizeof(float); }

static inline void pack_fp8_float_row(const Matrix *w, const float *x, float *packed) {
    const float size = largest_of(F32, (const uint8_t *)x, w->k);
    uint32_t bits = 0x7f000000; /* of a row that is not finite: 2^127, so that all other numbers stay finite */
    if (size == size) {
        const float least_size = 0x1p-6f; /* or the factor is no float */
        memcpy(&bits, size > least_size ? &size : &least_size, 4);
    }
    const float unit = bits_to_float(bits & 0x7f800000), factor = 0x1p120f / unit;
    for (int64_t k = 0; k < w->k; k += LANES) vstore(packed + k, vload(x + k) * vset(factor));
    packed[w->k] = unit;
}

/* out[j * out_stride + n - first] = W[n] . x[j] for rows [first, last) and packed rows x. */
static inline void fp8_floats(const Matrix *w, int64_t first, int64_t last, const float *packed, int64_t x_rows, float *out,
                              int64_t out_stride, float *space) {
    Matrix tiny = *w;
    tiny.format = TINY_FP8;
    for (int64_t j = 0; j < x_rows; j += PASS_X_ROWS) {
        const int64_t count = least(x_rows - j, PASS_X_ROWS);
        const float *x[PASS_X_ROWS];
        for (int64_t i = 0; i < count; i++) x[i] = packed + (j + i) * copy_stride(w->k);
        dot_block(&tiny, first, last, x, count, out + j * out_stride, out_stride, space);
        for (int64_t i = 0; i < count; i++)
            for (int64_t n = 0; n < last - first; n++) out[(j + i) * out_stride + n] *= x[i][w->k];
    }
}

#endif
#endif
