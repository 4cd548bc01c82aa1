/* Vectors of floats, the innermost layer of the compiled kernels: size, sums, transposition on each instruction set.
 *
 * Included, by way of vmath.h and weights.h, by the *_cython.pyx kernels, which hold the loops over tasks; built once per
 * ISA with that ISA's flags. Also prefetching. Knows nothing of weights, Python or threads.
 */
#ifndef DEEPZIG_SIMD_H
#define DEEPZIG_SIMD_H

#include <math.h>
#include <stdint.h>
#include <string.h>
#if defined(__AVX2__)
#include <immintrin.h>
#endif

/* LANES floats a vector, REGISTERS vectors that a core holds. */
#if defined(__AVX512F__)
#define LANES 16
#elif defined(__AVX2__)
#define LANES 8
#else
#define LANES 4
#endif
#if defined(__AVX512F__) || defined(__aarch64__)
#define REGISTERS 32
#else
#define REGISTERS 16
#endif

#define INLINE static inline __attribute__((always_inline))

typedef float vfloat __attribute__((vector_size(LANES * 4), aligned(4), may_alias));
typedef int32_t vint __attribute__((vector_size(LANES * 4), aligned(4), may_alias));

/* Elements of a and b, those of b counted behind those of a. numbers: a vector of as many whole numbers. */
#if defined(__clang__)
#define SHUFFLE(numbers, a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE(numbers, a, b, ...) __builtin_shuffle(a, b, (numbers){__VA_ARGS__})
#endif

INLINE vfloat vload(const float *p) { return *(const vfloat *)p; }
INLINE void vstore(float *p, vfloat v) { *(vfloat *)p = v; }
/* s in all lanes. Minus, since s - 0 is s for every s and costs nothing; -0 + 0 is +0, so plus would cost an addition. */
INLINE vfloat vset(float s) { return s - (vfloat){0}; }

/* v loaded once; the compiler would read it from memory wherever it is used. */
INLINE vfloat in_register(vfloat v) {
#if defined(__AVX2__)
    __asm__("" : "+x"(v));
#endif
    return v;
}

INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

/* Parts of `size` that hold n. */
INLINE int64_t parts_of(int64_t n, int64_t size) { return (n + size - 1) / size; }

INLINE int64_t round_up(int64_t n, int64_t size) { return parts_of(n, size) * size; }

/* Starts to load a line that is needed soon. Hint 2, into L2: what is used until then has L1 for itself. */
INLINE void prefetch(const void *line) { __builtin_prefetch(line, 0, 2); }

INLINE void prefetch_range(const void *first, int64_t bytes) {
    for (int64_t at = 0; at < bytes; at += 64) prefetch((const uint8_t *)first + at);
}

/* Sum of the lanes: halves are added to halves. */
INLINE float vsum(vfloat v) {
#if defined(__AVX2__)
#if defined(__AVX512F__)
    __m256 eight = _mm256_add_ps(_mm512_castps512_ps256((__m512)v), _mm512_extractf32x8_ps((__m512)v, 1));
#else
    __m256 eight = (__m256)v;
#endif
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
#else
    float lane[LANES];
    vstore(lane, v);
    for (int width = LANES / 2; width > 0; width /= 2)
        for (int l = 0; l < width; l++) lane[l] += lane[l + width];
    return lane[0];
#endif
}

#if defined(__AVX512F__)
/* Sixteen sums at once, each by the tree of vsum: lane 4 j + i is the sum of v[4 i + j]. */
INLINE vfloat vsum16(const vfloat *v) {
    __m512 eight[8], four[4], two[2];
    for (int i = 0; i < 8; i++) {
        __m512 a = (__m512)v[2 * i], b = (__m512)v[2 * i + 1];
        eight[i] = _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x44), _mm512_shuffle_f32x4(a, b, 0xee));
    }
    for (int i = 0; i < 4; i++) {
        __m512 a = eight[2 * i], b = eight[2 * i + 1];
        four[i] = _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xdd));
    }
    for (int i = 0; i < 2; i++) {
        __m512d a = _mm512_castps_pd(four[2 * i]), b = _mm512_castps_pd(four[2 * i + 1]);
        two[i] = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(a, b)), _mm512_castpd_ps(_mm512_unpackhi_pd(a, b)));
    }
    return (vfloat)_mm512_add_ps(_mm512_shuffle_ps(two[0], two[1], 0x88), _mm512_shuffle_ps(two[0], two[1], 0xdd));
}
#endif

/* Lane r of column c is lane c of row r. */
#if defined(__AVX512F__)
INLINE void transpose(const vfloat *row, vfloat *column) {
    __m512 a[16], b[16];
    for (int i = 0; i < 16; i += 2) {
        __m512 even = (__m512)row[i], odd = (__m512)row[i + 1];
        a[i] = _mm512_unpacklo_ps(even, odd);
        a[i + 1] = _mm512_unpackhi_ps(even, odd);
    }
    for (int i = 0; i < 16; i += 4)
        for (int half = 0; half < 2; half++) {
            __m512d first = _mm512_castps_pd(a[i + half]), second = _mm512_castps_pd(a[i + 2 + half]);
            b[i + 2 * half] = _mm512_castpd_ps(_mm512_unpacklo_pd(first, second));
            b[i + 2 * half + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(first, second));
        }
    /* b[4 q + c] holds columns c, c + 4, c + 8, c + 12 of rows 4 q to 4 q + 3 */
    for (int c = 0; c < 4; c++) {
        __m512 low = _mm512_shuffle_f32x4(b[c], b[4 + c], 0x88), low_odd = _mm512_shuffle_f32x4(b[c], b[4 + c], 0xdd);
        __m512 high = _mm512_shuffle_f32x4(b[8 + c], b[12 + c], 0x88);
        __m512 high_odd = _mm512_shuffle_f32x4(b[8 + c], b[12 + c], 0xdd);
        column[c] = (vfloat)_mm512_shuffle_f32x4(low, high, 0x88);
        column[c + 8] = (vfloat)_mm512_shuffle_f32x4(low, high, 0xdd);
        column[c + 4] = (vfloat)_mm512_shuffle_f32x4(low_odd, high_odd, 0x88);
        column[c + 12] = (vfloat)_mm512_shuffle_f32x4(low_odd, high_odd, 0xdd);
    }
}
#elif defined(__AVX2__)
INLINE void transpose(const vfloat *row, vfloat *column) {
    __m256 a[8], b[8];
    for (int i = 0; i < 4; i++) { /* rows i and i + 4 in halves: columns 0 to 3, then 4 to 7 */
        const __m256 low = (__m256)row[i], high = (__m256)row[i + 4];
        a[i] = _mm256_permute2f128_ps(low, high, 0x20);
        a[i + 4] = _mm256_permute2f128_ps(low, high, 0x31);
    }
    for (int half = 0; half < 8; half += 4) {
        for (int i = 0; i < 4; i += 2) {
            b[half + i] = _mm256_unpacklo_ps(a[half + i], a[half + i + 1]);
            b[half + i + 1] = _mm256_unpackhi_ps(a[half + i], a[half + i + 1]);
        }
        for (int i = 0; i < 2; i++) {
            const __m256d first = _mm256_castps_pd(b[half + i]), second = _mm256_castps_pd(b[half + 2 + i]);
            column[half + 2 * i] = (vfloat)_mm256_castpd_ps(_mm256_unpacklo_pd(first, second));
            column[half + 2 * i + 1] = (vfloat)_mm256_castpd_ps(_mm256_unpackhi_pd(first, second));
        }
    }
}
#else
INLINE void transpose(const vfloat *row, vfloat *column) {
    for (int half = 0; half < 2; half++) { /* columns 0 and 1, then 2 and 3 */
        const vfloat low = half ? SHUFFLE(vint, row[0], row[1], 2, 6, 3, 7) : SHUFFLE(vint, row[0], row[1], 0, 4, 1, 5);
        const vfloat high = half ? SHUFFLE(vint, row[2], row[3], 2, 6, 3, 7) : SHUFFLE(vint, row[2], row[3], 0, 4, 1, 5);
        column[2 * half] = SHUFFLE(vint, low, high, 0, 1, 4, 5);
        column[2 * half + 1] = SHUFFLE(vint, low, high, 2, 3, 6, 7);
    }
}
#endif

/* Four sums at once, each by the tree of vsum, to out[0..3]. */
INLINE void vsum4(const vfloat *v, float *out) {
#if defined(__AVX2__) && !defined(__AVX512F__)
    __m256 four[2];
    for (int i = 0; i < 2; i++) {
        const __m256 a = (__m256)v[2 * i], b = (__m256)v[2 * i + 1];
        four[i] = _mm256_add_ps(_mm256_permute2f128_ps(a, b, 0x20), _mm256_permute2f128_ps(a, b, 0x31));
    }
    const __m256d a = _mm256_castps_pd(four[0]), b = _mm256_castps_pd(four[1]);
    const __m256 two = _mm256_add_ps(_mm256_castpd_ps(_mm256_unpacklo_pd(a, b)), _mm256_castpd_ps(_mm256_unpackhi_pd(a, b)));
    const __m256 one = _mm256_add_ps(two, _mm256_movehdup_ps(two)); /* of v[0], v[2], v[1], v[3] in lanes 0, 2, 4, 6 */
    _mm_storeu_ps(out, _mm_blend_ps(_mm256_castps256_ps128(one), _mm_moveldup_ps(_mm256_extractf128_ps(one, 1)), 10));
#else
    for (int i = 0; i < 4; i++) out[i] = vsum(v[i]);
#endif
}

INLINE float vmax(vfloat v) {
    float lane[LANES];
    vstore(lane, v);
    for (int width = LANES / 2; width > 0; width /= 2)
        for (int l = 0; l < width; l++) lane[l] = lane[l] > lane[l + width] ? lane[l] : lane[l + width];
    return lane[0];
}

#endif
