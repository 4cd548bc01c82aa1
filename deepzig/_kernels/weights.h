/* Weights of every format as floats: a matrix, and its codes decoded by the vector, in steps and by the row.
 *
 * Included, by way of tiles.h, by the kernels that take weights. Knows a Matrix (the descriptor of weight.py); nothing of
 * products.
 */
#ifndef DEEPZIG_WEIGHTS_H
#define DEEPZIG_WEIGHTS_H

#include "simd.h"

/* The int64 descriptor that weight.py makes. */
typedef struct {
    int64_t codes, scale, n, k, row_bytes, format, scale_format, group_size, block_rows, offset;
} Matrix;

/* Where a row's codes begin. */
INLINE const uint8_t *codes_of(const Matrix *w, int64_t row) { return (const uint8_t *)w->codes + row * w->row_bytes; }

/* weight.FORMAT_CODE; then fp8 whose codes' bits are taken as floats, 2^120 times too small (fp8_floats.h). */
enum { F32, F16, BF16, FP8, INT8, INT4, TINY_FP8 };
enum { SCALE_NONE, SCALE_F32, SCALE_F16, SCALE_BF16 }; /* weight.SCALE_CODE */
enum { DECODING, FAST, EXACT = 3 };                    /* arithmetic that is asked for, as in weight.py */

INLINE float bits_to_float(uint32_t bits) {
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

INLINE float half_to_float(uint16_t half) {
    uint32_t magnitude = (uint32_t)(half & 0x7fff) << 13, sign = (uint32_t)(half & 0x8000) << 16;
    if ((half & 0x7c00) == 0x7c00) return bits_to_float(sign | 0x7f800000u | magnitude);
    return bits_to_float(sign | 0x77800000u) * fabsf(bits_to_float(magnitude)); /* +-2^112: subnormals come out right */
}

/* e4m3fn: the magnitude's bits, moved to float's place, are value * 2^-120; 0x7f is NaN. */
INLINE float fp8_to_float(uint8_t code) {
    uint32_t magnitude = code & 0x7f, sign = (uint32_t)(code & 0x80) << 24;
    if (magnitude == 0x7f) return bits_to_float(sign | 0x7fc00000u);
    if (magnitude < 8) return (sign ? -0.001953125f : 0.001953125f) * (float)magnitude; /* 2^-9 steps */
    return bits_to_float(sign | ((magnitude + (120u << 3)) << 20));
}

/* Bits that a weight's code takes. */
INLINE int code_bits(int format) { return format == F32 ? 32 : format <= BF16 ? 16 : format == INT4 ? 4 : 8; }

/* Index of the scale of a row's first group. */
INLINE int64_t first_scale(const Matrix *w, int64_t row) {
    return (w->block_rows == 1 ? row : row / w->block_rows) * parts_of(w->k, w->group_size);
}

INLINE float scale_at(const Matrix *w, int64_t index) {
    switch (w->scale_format) {
    case SCALE_F32: return ((const float *)w->scale)[index];
    case SCALE_F16: return half_to_float(((const uint16_t *)w->scale)[index]);
    case SCALE_BF16: return bits_to_float((uint32_t)((const uint16_t *)w->scale)[index] << 16);
    default: return 1.0f;
    }
}

/* One weight without its scale. */
INLINE float decode_one(int format, const uint8_t *row, int64_t k, int64_t offset) {
    switch (format) {
    case F32: return ((const float *)row)[k];
    case F16: return half_to_float(((const uint16_t *)row)[k]);
    case BF16: return bits_to_float((uint32_t)((const uint16_t *)row)[k] << 16);
    case FP8: return fp8_to_float(row[k]);
    case INT8: return (float)(int8_t)(row[k] ^ (uint8_t)offset);
    default: return (float)((row[k / 2] >> (4 * (k & 1)) & 15) - 8);
    }
}

/* Whether fp8 is decoded by looking codes up, NaN among them. */
#if defined(__AVX512VBMI__)
#define LOOKS_UP_FP8 1
#else
#define LOOKS_UP_FP8 0
#endif

/* Whether some products take it as TINY_FP8. */
#if defined(__AVX2__) && !LOOKS_UP_FP8
#define HAS_FP8_FLOATS 1
#else
#define HAS_FP8_FLOATS 0
#endif

#if LOOKS_UP_FP8
/* Both bytes of each fp8 code's value as bf16, which holds it without rounding; its sign left out. */
static uint8_t fp8_low_bytes[128], fp8_high_bytes[128];

__attribute__((constructor)) static void fill_fp8_bytes(void) {
    for (int i = 0; i < 128; i++) {
        float value = fp8_to_float((uint8_t)i);
        memcpy(fp8_low_bytes + i, (const uint8_t *)&value + 2, 1);
        memcpy(fp8_high_bytes + i, (const uint8_t *)&value + 3, 1);
    }
}

/* Low and high byte of 64 codes as bf16. */
INLINE void fp8_bytes(__m512i code, __m512i *low, __m512i *high) {
    *low = _mm512_permutex2var_epi8(_mm512_loadu_si512(fp8_low_bytes), code, _mm512_loadu_si512(fp8_low_bytes + 64));
    *high = _mm512_permutex2var_epi8(_mm512_loadu_si512(fp8_high_bytes), code, _mm512_loadu_si512(fp8_high_bytes + 64));
    *high = _mm512_ternarylogic_epi32(*high, code, _mm512_set1_epi8((char)0x80), 0xf8); /* high | (code & sign) */
}

/* 64 codes, eight and eight in turn, as bf16 in two vectors: how unpacking bytes leaves them. */
INLINE void fp8_to_bf16(__m512i code, __m512i *first, __m512i *second) {
    __m512i low, high;
    fp8_bytes(code, &low, &high);
    *first = _mm512_unpacklo_epi8(low, high);
    *second = _mm512_unpackhi_epi8(low, high);
}
#endif

INLINE int is_fp8(int format) { return format == FP8 || format == TINY_FP8; }

#if LANES == 4
typedef uint8_t vbytes __attribute__((vector_size(16)));
typedef uint16_t vwords __attribute__((vector_size(16)));
typedef int64_t vlongs __attribute__((vector_size(16)));

INLINE vwords four_words(const uint8_t *from) {
    int64_t four;
    memcpy(&four, from, 8);
    return (vwords)(vlongs){four};
}

/* The first four words of both, or the last, in turn: each lane has one of low and, above it, one of high. */
INLINE vint zip_words(vwords low, vwords high) { return (vint)SHUFFLE(vwords, low, high, 0, 8, 1, 9, 2, 10, 3, 11); }
INLINE vint zip_last_words(vwords low, vwords high) { return (vint)SHUFFLE(vwords, low, high, 4, 12, 5, 13, 6, 14, 7, 15); }

/* 16 bytes, each as the upper one of a lane. */
INLINE void upper_bytes(vbytes bytes, vint *lanes) {
    const vbytes none = {0};
    const vwords first = (vwords)SHUFFLE(vbytes, none, bytes, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    const vwords last = (vwords)SHUFFLE(vbytes, none, bytes, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
    lanes[0] = zip_words((vwords){0}, first);
    lanes[1] = zip_last_words((vwords){0}, first);
    lanes[2] = zip_words((vwords){0}, last);
    lanes[3] = zip_last_words((vwords){0}, last);
}
#endif

/* Where a code's bits stand in a float of value * 2^-120. */
#define FP8_BITS ((int32_t)0x87f00000)

/* What a code of fp8 or int8 in the upper byte of a lane stands for; fp8's NaN comes as +-480, with four lanes as NaN. */
INLINE vfloat value_of(int format, vint code) {
    if (format == INT8) return __builtin_convertvector(code >> 24, vfloat);
#if LANES == 4
    const vint magnitude = (code >> 4) & 0x07f00000, nan = (magnitude == 0x07f00000) & 0x7fc00000;
    return (vfloat)((vint)((vfloat)magnitude * vset(0x1p120f)) | nan | (code & (int32_t)0x80000000));
#else
    return (vfloat)(code >> 4 & FP8_BITS) * vset(0x1p120f);
#endif
}

#if defined(__AVX2__)
/* LANES bytes as whole numbers with sign. */
INLINE vint widen(const uint8_t *bytes) {
#if defined(__AVX512F__)
    return (vint)_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)bytes));
#else
    return (vint)_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)bytes));
#endif
}
#endif

/* LANES weights from column k on, to be multiplied by their scale. k is a multiple of LANES; all lie in one group. */
INLINE vfloat decode(int format, const uint8_t *row, int64_t k, int64_t offset) {
    if (format == F32) return vload((const float *)row + k);
#if HAS_FP8_FLOATS
    if (is_fp8(format)) return (vfloat)(widen(row + k) << 20 & FP8_BITS) * vset(format == FP8 ? 0x1p120f : 1);
#endif
#if defined(__AVX512F__)
    const uint8_t *bytes = row + k;
    switch (format) {
    case F16: return (vfloat)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(row + 2 * k)));
    case BF16:
        return (vfloat)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)(row + 2 * k))), 16);
#if LOOKS_UP_FP8
    case FP8: { /* the code to both upper bytes of a lane, each a look-up */
        const __m512i lanes = _mm512_setr_epi32(0, 0x01010101, 0x02020202, 0x03030303, 0x04040404, 0x05050505, 0x06060606,
                                                0x07070707, 0x08080808, 0x09090909, 0x0a0a0a0a, 0x0b0b0b0b, 0x0c0c0c0c,
                                                0x0d0d0d0d, 0x0e0e0e0e, 0x0f0f0f0f);
        const __m512i codes = _mm512_castsi128_si512(_mm_loadu_si128((const __m128i *)bytes));
        const __m512i code = _mm512_maskz_permutexvar_epi8(0xcccccccccccccccc, lanes, codes);
        __m512i value = _mm512_mask2_permutex2var_epi8(_mm512_loadu_si512(fp8_low_bytes), code, 0x4444444444444444,
                                                       _mm512_loadu_si512(fp8_low_bytes + 64));
        value = _mm512_mask2_permutex2var_epi8(_mm512_loadu_si512(fp8_high_bytes), value, 0x8888888888888888,
                                               _mm512_loadu_si512(fp8_high_bytes + 64));
        return (vfloat)_mm512_ternarylogic_epi32(value, code, _mm512_set1_epi32((int)0x80000000), 0xf8); /* the sign */
    }
#endif
    case INT8: {
        __m128i codes = _mm_xor_si128(_mm_loadu_si128((const __m128i *)bytes), _mm_set1_epi8((char)offset));
        return (vfloat)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(codes));
    }
    default: { /* nibble i to the low four bits of lane i, then a look-up that ignores the bits above */
        const vfloat values = {-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7};
        int64_t nibbles;
        memcpy(&nibbles, row + k / 2, 8);
#if defined(__AVX512VBMI__)
        const __m512i places = _mm512_set_epi64(0x3c00000038, 0x3400000030, 0x2c00000028, 0x2400000020, 0x1c00000018,
                                                0x1400000010, 0x0c00000008, 0x0400000000);
        __m512i spread = _mm512_multishift_epi64_epi8(places, _mm512_set1_epi64(nibbles));
#else
        const __m512i half = _mm512_set_epi32(1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0);
        const __m512i shift = _mm512_set_epi32(28, 24, 20, 16, 12, 8, 4, 0, 28, 24, 20, 16, 12, 8, 4, 0);
        __m512i spread = _mm512_srlv_epi32(_mm512_permutexvar_epi32(half, _mm512_set1_epi64(nibbles)), shift);
#endif
        return (vfloat)_mm512_permutexvar_ps(spread, (__m512)values);
    }
    }
#elif defined(__AVX2__)
    switch (format) {
    case F16: return (vfloat)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(row + 2 * k)));
    case BF16:
        return (vfloat)_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)(row + 2 * k))), 16);
    case INT8: { /* offset 128 turns the codes' highest bit, and with it, behind the sign's, all bits above */
        const __m256i codes = _mm256_xor_si256((__m256i)widen(row + k), _mm256_set1_epi32(-(int32_t)offset));
        return (vfloat)_mm256_cvtepi32_ps(codes);
    }
    default: {
        int32_t nibbles;
        memcpy(&nibbles, row + k / 2, 4);
        __m256i spread = _mm256_srlv_epi32(_mm256_set1_epi32(nibbles), _mm256_set_epi32(28, 24, 20, 16, 12, 8, 4, 0));
        __m256i value = _mm256_sub_epi32(_mm256_and_si256(spread, _mm256_set1_epi32(15)), _mm256_set1_epi32(8));
        return (vfloat)_mm256_cvtepi32_ps(value);
    }
    }
#else
    switch (format) {
    case F16: { /* as half_to_float */
        const vint half = zip_words(four_words(row + 2 * k), (vwords){0}), magnitude = (half & 0x7fff) << 13;
        const vfloat value = (vfloat)magnitude * vset(0x1p112f);
        const vint special = (magnitude >= 0x0f800000) & (magnitude | 0x7f800000);
        return (vfloat)((vint)value | special | (half & 0x8000) << 16);
    }
    case BF16: return (vfloat)zip_words((vwords){0}, four_words(row + 2 * k));
    case FP8:
    case INT8: {
        vint lanes[4];
        uint32_t four;
        memcpy(&four, row + k, 4);
        upper_bytes((vbytes)(vint){(int32_t)four} ^ (uint8_t)offset, lanes);
        return value_of(format, lanes[0]);
    }
    default: { /* each nibble to the top of its word */
        uint16_t nibbles;
        memcpy(&nibbles, row + k / 2, 2);
        const vwords spread = ((vwords){0} + nibbles) * (vwords){4096, 256, 16, 1} >> 12;
        return __builtin_convertvector(zip_words(spread, (vwords){0}) - 8, vfloat);
    }
    }
#endif
}

/* Vectors that `decode_step` decodes at once. */
#if defined(__AVX2__) && !defined(__AVX512F__)
#define STEP_VECTORS(format) ((format) == INT4 ? 4 : 1)
#elif LOOKS_UP_FP8
#define STEP_VECTORS(format) ((format) == FP8 ? 4 : 1)
#elif LANES == 4
#define STEP_VECTORS(format) ((format) >= FP8 ? 4 : 1)
#else
#define STEP_VECTORS(format) 1
#endif

/* STEP_VECTORS vectors of weights from column k on, as `decode`. 64 codes of fp8 that are looked up together take 10
 * instructions, 16 alone take 4. On AVX2 int4 goes through memory: widening bytes as they are loaded is cheaper
 * than moving the halves of a register, as gcc would without the line of assembly. */
INLINE void decode_step(int format, const uint8_t *row, int64_t k, int64_t offset, vfloat *weight) {
#if defined(__AVX2__) && !defined(__AVX512F__)
    uint8_t memory[32] __attribute__((aligned(32)));
    if (format == INT4) {
        const __m128i nibbles = _mm_loadu_si128((const __m128i *)(row + k / 2)), most = _mm_set1_epi8(15);
        const __m128i low = _mm_and_si128(nibbles, most), high = _mm_and_si128(_mm_srli_epi16(nibbles, 4), most);
        _mm_store_si128((__m128i *)memory, _mm_sub_epi8(_mm_unpacklo_epi8(low, high), _mm_set1_epi8(8)));
        _mm_store_si128((__m128i *)(memory + 16), _mm_sub_epi8(_mm_unpackhi_epi8(low, high), _mm_set1_epi8(8)));
        __asm__("" : "+m"(memory));
        for (int v = 0; v < 4; v++) weight[v] = decode(INT8, memory, v * LANES, 0);
        return;
    }
#elif LOOKS_UP_FP8
    if (format == FP8) { /* sorted so that numbers in the lower halves of lanes, and in the upper, come out in order */
        const __m512i order = _mm512_setr_epi64(0x1303120211011000, 0x3323322231213020, 0x1707160615051404,
                                                0x3727362635253424, 0x1b0b1a0a19091808, 0x3b2b3a2a39293828,
                                                0x1f0f1e0e1d0d1c0c, 0x3f2f3e2e3d2d3c2c);
        const __m512i upper = _mm512_set1_epi32((int)0xffff0000);
        __m512i pairs[2];
        fp8_to_bf16(_mm512_permutexvar_epi8(order, _mm512_loadu_si512(row + k)), pairs, pairs + 1);
        for (int v = 0; v < 2; v++) {
            weight[2 * v] = (vfloat)_mm512_slli_epi32(pairs[v], 16);
            weight[2 * v + 1] = (vfloat)_mm512_and_si512(pairs[v], upper);
        }
        return;
    }
#elif LANES == 4
    if (format >= FP8) {
        vbytes codes;
        vint lanes[4];
        if (format == INT4) {
            const vbytes pairs = (vbytes)four_words(row + k / 2), low = pairs & 15, high = pairs >> 4;
            codes = SHUFFLE(vbytes, low, high, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23) - 8;
        } else {
            memcpy(&codes, row + k, 16);
            if (format == INT8) codes ^= (uint8_t)offset;
        }
        upper_bytes(codes, lanes);
        for (int v = 0; v < 4; v++) weight[v] = value_of(format == INT4 ? INT8 : format, lanes[v]);
        return;
    }
#endif
    weight[0] = decode(format, row, k, offset);
}

/* The largest magnitudes of fp8 codes, byte by byte, 64 more taken in; nothing is done where `decode` gives NaN itself. */
INLINE void take_magnitudes(const uint8_t *codes, vint *largest) {
#if LOOKS_UP_FP8 || LANES == 4
    (void)codes, (void)largest;
#elif defined(__AVX512F__)
    const __m512i magnitude = _mm512_and_si512(_mm512_loadu_si512(codes), _mm512_set1_epi8(0x7f));
    *largest = (vint)_mm512_max_epu8((__m512i)*largest, magnitude);
#else
    for (int i = 0; i < 64; i += 32) {
        const __m256i code = _mm256_loadu_si256((const __m256i *)(codes + i));
        *largest = (vint)_mm256_max_epu8((__m256i)*largest, _mm256_and_si256(code, _mm256_set1_epi8(0x7f)));
    }
#endif
}

/* Whether fp8's NaN is among them. */
INLINE int has_nan_magnitude(vint largest) {
#if LOOKS_UP_FP8 || LANES == 4
    (void)largest;
    return 0;
#elif defined(__AVX512F__)
    return _mm512_cmpeq_epi8_mask((__m512i)largest, _mm512_set1_epi8(0x7f)) != 0;
#else
    return _mm256_movemask_epi8(_mm256_cmpeq_epi8((__m256i)largest, _mm256_set1_epi8(0x7f))) != 0;
#endif
}

/* Whether rows and groups are whole steps of decode_step (and fp8 rows whole 64 codes, as take_magnitudes reads them). */
INLINE int fits_steps(const Matrix *w) {
    const int64_t step = LANES * STEP_VECTORS(w->format);
    return w->k % (is_fp8((int)w->format) ? 64 : step) == 0 && (w->group_size >= w->k || w->group_size % step == 0);
}

/* Whether rows [first, last) of a w that fits steps hold fp8's NaN, where `decode` does not give it. */
static inline int has_nan(const Matrix *w, int64_t first, int64_t last) {
    vint largest = {0};
    if (is_fp8((int)w->format))
        for (int64_t n = first; n < last; n++)
            for (int64_t k = 0; k < w->k; k += 64) take_magnitudes(codes_of(w, n) + k, &largest);
    return has_nan_magnitude(largest);
}

INLINE void dequantize_row_as(int format, const Matrix *w, int64_t n, float *out) {
    const uint8_t *row = codes_of(w, n);
    const int64_t scale = first_scale(w, n);
    for (int64_t k = 0, g = 0; k < w->k; g++) {
        int64_t end = least(k + w->group_size, w->k);
        const vfloat factor = vset(scale_at(w, scale + g));
        for (; k < end; k += LANES * STEP_VECTORS(format)) {
            vfloat weight[4];
            decode_step(format, row, k, w->offset, weight);
            for (int v = 0; v < STEP_VECTORS(format); v++) {
                if (format >= FP8) weight[v] *= factor;
                vstore(out + k + v * LANES, weight[v]);
            }
        }
    }
}

/* Row n of w as floats, (K,). */
static void dequantize_row(const Matrix *w, int64_t n, float *out) {
    const uint8_t *row = codes_of(w, n);
    if (!fits_steps(w) || has_nan(w, n, n + 1)) {
        for (int64_t k = 0; k < w->k; k++) {
            float value = decode_one((int)w->format, row, k, w->offset);
            out[k] = w->scale_format == SCALE_NONE ? value : value * scale_at(w, first_scale(w, n) + k / w->group_size);
        }
        return;
    }
    switch (w->format) {
    case F32: memcpy(out, row, 4 * w->k); break;
    case F16: dequantize_row_as(F16, w, n, out); break;
    case BF16: dequantize_row_as(BF16, w, n, out); break;
    case FP8: dequantize_row_as(FP8, w, n, out); break;
    case INT8: dequantize_row_as(INT8, w, n, out); break;
    default: dequantize_row_as(INT4, w, n, out);
    }
}

#endif
