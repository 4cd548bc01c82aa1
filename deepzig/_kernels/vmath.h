/* Beyond simd.h: loads and stores of a row's last, incomplete vector; exp and sigmoid; maxima, and sums of exp, of whole
 * rows. Included by kernels that work element by element, and by attention.h. */
#ifndef DEEPZIG_VMATH_H
#define DEEPZIG_VMATH_H

#include "simd.h"

/* The first n < LANES floats of p, other lanes 0. */
INLINE vfloat vload_part(const float *p, int64_t n) {
#if defined(__AVX512F__)
    return (vfloat)_mm512_maskz_loadu_ps((__mmask16)((1u << n) - 1), p);
#else
    float lane[LANES] = {0};
    for (int64_t l = 0; l < n; l++) lane[l] = p[l];
    return vload(lane);
#endif
}

INLINE void vstore_part(float *p, int64_t n, vfloat v) {
#if defined(__AVX512F__)
    _mm512_mask_storeu_ps(p, (__mmask16)((1u << n) - 1), (__m512)v);
#else
    float lane[LANES];
    vstore(lane, v);
    for (int64_t l = 0; l < n; l++) p[l] = lane[l];
#endif
}

/* mask ? a : b, lane by lane; mask is the result of a comparison. */
INLINE vfloat vselect(vint mask, vfloat a, vfloat b) { return (vfloat)((mask & (vint)a) | (~mask & (vint)b)); }

INLINE vfloat vmaximum(vfloat a, vfloat b) { return vselect(a > b, a, b); }

/* y * 2^n for whole n in [-160, 160], in two steps so that neither leaves the range of exponents too early. */
INLINE vfloat vscale_by_power(vfloat y, vfloat n) {
#if defined(__AVX512F__)
    return (vfloat)_mm512_scalef_ps((__m512)y, (__m512)n);
#else
    vint whole = __builtin_convertvector(n, vint), half = whole >> 1;
    return y * (vfloat)((half + 127) << 23) * (vfloat)((whole - half + 127) << 23);
#endif
}

/* e^x within 2 ulp (normal results). exp(-inf) = 0, exp(NaN) = NaN, overflow gives inf. Coefficients: Cephes expf. */
INLINE vfloat vexp(vfloat x) {
    const vfloat rounder = vset(12582912.0f); /* 1.5 * 2^23: adding it leaves the nearest whole number */
    x = vselect(x < vset(-104.0f), vset(-104.0f), x);
    x = vselect(x > vset(89.0f), vset(89.0f), x);
    vfloat n = (x * vset(1.44269504088896341f) + rounder) - rounder;
    vfloat r = (x - n * vset(0.693359375f)) - n * vset(-2.12194440e-4f); /* ln 2 in two parts */
    vfloat p = vset(1.9875691500e-4f);
    p = p * r + vset(1.3981999507e-3f);
    p = p * r + vset(8.3334519073e-3f);
    p = p * r + vset(4.1665795894e-2f);
    p = p * r + vset(1.6666665459e-1f);
    p = p * r + vset(5.0000001201e-1f);
    return vscale_by_power(p * (r * r) + r + vset(1.0f), n);
}

/* The greatest of `size` floats. */
INLINE float highest_of(const float *x, int64_t size) {
    vfloat found = vset(-INFINITY);
    int64_t s = 0;
    for (; s + LANES <= size; s += LANES) found = vmaximum(vload(x + s), found);
    float highest = vmax(found);
    for (; s < size; s++) highest = x[s] > highest ? x[s] : highest;
    return highest;
}

/* out = exp(x - shift); returns the sum. */
INLINE float exp_row(const float *x, float shift, float *out, int64_t size) {
    vfloat total = vset(0);
    int64_t s = 0;
    for (; s + LANES <= size; s += LANES) {
        const vfloat e = vexp(vload(x + s) - vset(shift));
        vstore(out + s, e);
        total += e;
    }
    float sum = vsum(total);
    if (s < size) vstore_part(out + s, size - s, vexp(vload_part(x + s, size - s) - vset(shift)));
    for (; s < size; s++) sum += out[s];
    return sum;
}

INLINE vfloat vsigmoid(vfloat x) { return vset(1.0f) / (vset(1.0f) + vexp(-x)); }

#endif
