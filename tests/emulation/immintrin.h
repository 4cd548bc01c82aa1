/* Found before the compiler's own: AVX512 by SIMDe, what SIMDe lacks, and AMX tiles in plain C. Which of them
 * a kernel is to have is said by EMULATED_..., one for each flag that emulating_compiler.py has taken away. */
#ifndef DEEPZIG_EMULATED_IMMINTRIN_H
#define DEEPZIG_EMULATED_IMMINTRIN_H

#include_next <immintrin.h>

#if defined(EMULATED_AVX512F)
#define SIMDE_ENABLE_NATIVE_ALIASES
#include "simde/x86/avx512.h"
#include <math.h>
#include <stdint.h>
#include <string.h>

/* What SIMDe lacks or gets wrong (in 0.8.2), as loops over elements. */
#define ELEMENTS(type, name, vector) \
    type name[sizeof(vector) / sizeof(type)]; \
    memcpy(name, &vector, sizeof(vector))

static inline simde__m512i vector_of(const void *elements) {
    simde__m512i vector;
    memcpy(&vector, elements, sizeof vector);
    return vector;
}

static inline __m128i emulated_cvtepi32_epi8(simde__m512i a) {
    ELEMENTS(int32_t, from, a);
    int8_t to[16];
    __m128i result;
    for (int i = 0; i < 16; i++) to[i] = (int8_t)from[i];
    memcpy(&result, to, 16);
    return result;
}

static inline simde__m512i emulated_cvtepi8_epi32(__m128i a) {
    ELEMENTS(int8_t, from, a);
    int32_t to[16];
    for (int i = 0; i < 16; i++) to[i] = from[i];
    return vector_of(to);
}

static inline simde__m512i emulated_cvtepu8_epi16(__m256i a) {
    ELEMENTS(uint8_t, from, a);
    uint16_t to[32];
    for (int i = 0; i < 32; i++) to[i] = from[i];
    return vector_of(to);
}

static inline int32_t emulated_reduce_add_epi32(simde__m512i a) {
    ELEMENTS(uint32_t, from, a);
    uint32_t sum = 0;
    for (int i = 0; i < 16; i++) sum += from[i];
    return (int32_t)sum;
}

/* Masked loads and stores that touch no other element: SIMDe's read and write all of them. */
static inline simde__m512i emulated_maskz_loadu_epi8(uint64_t mask, const void *memory) {
    uint8_t to[64] = {0};
    for (int i = 0; i < 64; i++)
        if (mask >> i & 1) to[i] = ((const uint8_t *)memory)[i];
    return vector_of(to);
}

static inline __m256i emulated_maskz_loadu_epi16(uint16_t mask, const void *memory) {
    uint16_t to[16] = {0};
    __m256i result;
    for (int i = 0; i < 16; i++)
        if (mask >> i & 1) memcpy(to + i, (const uint16_t *)memory + i, 2);
    memcpy(&result, to, sizeof to);
    return result;
}

static inline simde__m512 emulated_mask_loadu_ps(simde__m512 other, uint32_t mask, const float *memory) {
    ELEMENTS(float, to, other);
    for (int i = 0; i < 16; i++)
        if (mask >> i & 1) to[i] = memory[i];
    memcpy(&other, to, sizeof other);
    return other;
}

static inline simde__m512 emulated_maskz_loadu_ps(uint32_t mask, const float *memory) {
    return emulated_mask_loadu_ps(simde_mm512_setzero_ps(), mask, memory);
}

static inline void emulated_mask_storeu_ps(float *memory, uint32_t mask, simde__m512 a) {
    ELEMENTS(float, from, a);
    for (int i = 0; i < 16; i++)
        if (mask >> i & 1) memory[i] = from[i];
}

static inline void emulated_mask_storeu_epi32(void *memory, uint32_t mask, simde__m512i a) {
    emulated_mask_storeu_ps(memory, mask, simde_mm512_castsi512_ps(a));
}

static inline simde__m512i emulated_mask_sub_epi16(simde__m512i other, uint32_t mask, simde__m512i a, simde__m512i b) {
    ELEMENTS(uint16_t, to, other);
    ELEMENTS(uint16_t, left, a);
    ELEMENTS(uint16_t, right, b);
    for (int i = 0; i < 32; i++)
        if (mask >> i & 1) to[i] = (uint16_t)(left[i] - right[i]);
    return vector_of(to);
}

/* VREDUCEPS with its immediate 1, the only one that is used: x - floor(x), and 0 for infinities. */
static inline simde__m512 emulated_reduce_ps(simde__m512 a, int immediate) {
    ELEMENTS(float, x, a);
    if (immediate != 1) __builtin_trap();
    for (int i = 0; i < 16; i++) x[i] = isinf(x[i]) ? 0.0f : x[i] - floorf(x[i]);
    memcpy(&a, x, sizeof a);
    return a;
}

/* VCVTNEPS2BF16: to nearest, ties to even, subnormal numbers to zero, NaN to quiet NaN. */
static inline uint16_t emulated_bf16(uint32_t bits) {
    const uint32_t magnitude = bits & 0x7fffffff;
    if (magnitude > 0x7f800000) return (uint16_t)(bits >> 16 | 0x40);
    if (magnitude < 0x00800000) return (uint16_t)(bits >> 16 & 0x8000);
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

static inline simde__m512i emulated_cvtne2ps_pbh(simde__m512 high, simde__m512 low) {
    ELEMENTS(uint32_t, upper, high);
    ELEMENTS(uint32_t, lower, low);
    uint16_t to[32];
    for (int i = 0; i < 16; i++) to[i] = emulated_bf16(lower[i]), to[16 + i] = emulated_bf16(upper[i]);
    return vector_of(to);
}

static inline __m256i emulated_cvtneps_pbh(simde__m512 a) {
    return simde_mm512_castsi512_si256(emulated_cvtne2ps_pbh(a, a));
}

#undef _mm512_cvtepi32_epi8
#undef _mm512_cvtepi8_epi32
#undef _mm512_cvtepu8_epi16
#undef _mm512_reduce_add_epi32
#undef _mm256_maskz_loadu_epi16
#undef _mm512_maskz_loadu_epi8
#undef _mm512_mask_loadu_ps
#undef _mm512_maskz_loadu_ps
#undef _mm512_mask_storeu_ps
#undef _mm512_mask_storeu_epi32
#undef _mm512_mask_sub_epi16
#undef _mm512_reduce_ps
#undef _mm512_cvtne2ps_pbh
#undef _mm512_cvtneps_pbh
#define _mm512_cvtepi32_epi8 emulated_cvtepi32_epi8
#define _mm512_cvtepi8_epi32 emulated_cvtepi8_epi32
#define _mm512_cvtepu8_epi16 emulated_cvtepu8_epi16
#define _mm512_reduce_add_epi32 emulated_reduce_add_epi32
#define _mm256_maskz_loadu_epi16 emulated_maskz_loadu_epi16
#define _mm512_maskz_loadu_epi8 emulated_maskz_loadu_epi8
#define _mm512_mask_loadu_ps emulated_mask_loadu_ps
#define _mm512_maskz_loadu_ps emulated_maskz_loadu_ps
#define _mm512_mask_storeu_ps emulated_mask_storeu_ps
#define _mm512_mask_storeu_epi32 emulated_mask_storeu_epi32
#define _mm512_mask_sub_epi16 emulated_mask_sub_epi16
#define _mm512_reduce_ps emulated_reduce_ps
#define _mm512_cvtne2ps_pbh emulated_cvtne2ps_pbh
#define _mm512_cvtneps_pbh emulated_cvtneps_pbh

#define __AVX512F__ 1
#define __AVX512BW__ 1
#define __AVX512DQ__ 1
#define __AVX512VL__ 1
#define __AVX512CD__ 1
#endif

#if defined(EMULATED_AVX512VNNI)
#define __AVX512VNNI__ 1
#define __AVX512VBMI__ 1
#endif

#if defined(EMULATED_AVX512BF16)
#define __AVX512BF16__ 1
#endif

#if defined(EMULATED_AMX_TILE)
#include "emulated_tiles.h"
#endif

#endif
