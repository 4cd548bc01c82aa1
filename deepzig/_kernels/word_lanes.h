/* Weights and activations as whole numbers of 16 bits, in registers whose lanes are weight rows: `precision="fast"` for
 * prompts on CPUs without AMX, of weights that are not multiplied as digits (digits.h). Three products of words take the time
 * of two of floats on AVX2, with VNNI two that of one.
 *
 * Included by ways.h. Knows matrices and float rows, nothing of threads. Numbers count a unit that up to WORD_TURN columns of
 * a row share. Codes of int8 and int4 are such numbers; fp8 is rounded to quarters, where the largest is 448; float weights
 * and activations to whole parts of the turn's largest (weight_most, activation_most). Sums of a turn are whole numbers of
 * 32 bits, without error; they are added in float, in order, times both units. A row depends on no other row.
 * Blocks are made and used as those of float_lanes.h, with two columns of 16 bits in each lane.
 */
#ifndef DEEPZIG_WORD_LANES_H
#define DEEPZIG_WORD_LANES_H

#include "bf16.h"
#include "float_lanes.h"

/* Whether this CPU gains by words. */
#if defined(__AVX2__) && !HAS_BF16_TILES
#define HAS_WORDS 1
#else
#define HAS_WORDS 0
#endif

#define WORD_TURN 128
#define WORD_STEP 32 /* columns that are decoded at once */

/* Columns of a turn: a group, or a part of one. */
INLINE int64_t word_turn(const Matrix *w) { return least(w->group_size, WORD_TURN); }

/* Whether turns are whole steps, and groups whole turns. */
INLINE int takes_words(const Matrix *w) {
    const int64_t size = w->group_size;
    return HAS_WORDS && w->k % WORD_STEP == 0 && (size >= w->k || size % WORD_TURN == 0 || size == 32 || size == 64);
}

#if HAS_WORDS

#define WORD_LANE_ROWS (2 * LANES)
#define WORD_LANE_BLOCK (LANES == 16 ? 256 : 512)
#define WORD_LANE_PASS 128 /* x rows that meet a block before it is made again */

typedef struct {
    int32_t panel[WORD_LANE_BLOCK / 2][WORD_LANE_ROWS];      /* pairs of columns */
    float unit[WORD_LANE_BLOCK / WORD_STEP][WORD_LANE_ROWS]; /* of each turn */
    float sum[WORD_LANE_PASS][WORD_LANE_ROWS];
} WordLaneSpace;

/* The largest whole number that stands for a weight: fp8's 448 in quarters, int8's and int4's codes, floats in 11 bits. */
INLINE int weight_most(int format) { return format == FP8 ? 1792 : format == INT8 ? 128 : format == INT4 ? 8 : 2047; }

/* The largest that stands for an activation, so that WORD_TURN products fit 32 bits. */
INLINE int activation_most(const Matrix *w) {
    const int most = 0x7fffffff / WORD_TURN / weight_most((int)w->format);
    return (int)least(most, 32767);
}

INLINE __m256i load_bytes(const uint8_t *from) { return _mm256_loadu_si256((const __m256i *)from); }

/* The largest of 16-bit numbers without their sign bits, `bytes` of them, a multiple of 64. */
INLINE uint32_t largest_16(const uint8_t *from, int64_t bytes) {
#if defined(__AVX512F__)
    __m512i most = _mm512_setzero_si512();
    for (int64_t at = 0; at < bytes; at += 64)
        most = _mm512_max_epu16(most, _mm512_and_si512(_mm512_loadu_si512(from + at), _mm512_set1_epi16(0x7fff)));
    const __m256i half = _mm256_max_epu16(_mm512_castsi512_si256(most), _mm512_extracti64x4_epi64(most, 1));
#else
    __m256i half = _mm256_setzero_si256();
    for (int64_t at = 0; at < bytes; at += 32)
        half = _mm256_max_epu16(half, _mm256_and_si256(load_bytes(from + at), _mm256_set1_epi16(0x7fff)));
#endif
    const __m128i eight = _mm_max_epu16(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
    return ~(uint32_t)_mm_cvtsi128_si32(_mm_minpos_epu16(_mm_xor_si128(eight, _mm_set1_epi8(-1)))) & 0xffff;
}

/* The largest magnitude of `width` floats of 16 or 32 bits, a multiple of WORD_STEP; NaN if one is not finite. Without
 * their sign, floats are ordered as whole numbers are. */
INLINE float largest_of(int format, const uint8_t *from, int64_t width) {
    if (format == F32) {
        __m256i most = _mm256_setzero_si256();
        for (int64_t at = 0; at < 4 * width; at += 32)
            most = _mm256_max_epu32(most, _mm256_and_si256(load_bytes(from + at), _mm256_set1_epi32(0x7fffffff)));
        __m128i four = _mm_max_epu32(_mm256_castsi256_si128(most), _mm256_extracti128_si256(most, 1));
        four = _mm_max_epu32(four, _mm_shuffle_epi32(four, 0x4e));
        const uint32_t bits = (uint32_t)_mm_cvtsi128_si32(_mm_max_epu32(four, _mm_shuffle_epi32(four, 0xb1)));
        return bits < 0x7f800000u ? bits_to_float(bits) : NAN;
    }
    const uint32_t bits = largest_16(from, 2 * width);
    if (format == BF16) return bits < 0x7f80 ? bits_to_float(bits << 16) : NAN;
    return bits < 0x7c00 ? half_to_float((uint16_t)bits) : NAN;
}

/* Whether one of `width` fp8 codes, a multiple of WORD_STEP, is NaN. */
INLINE int any_nan(const uint8_t *codes, int64_t width) {
    const __m256i most = _mm256_set1_epi8(0x7f);
    __m256i found = _mm256_setzero_si256();
    for (int64_t at = 0; at < width; at += 32)
        found = _mm256_or_si256(found, _mm256_cmpeq_epi8(_mm256_and_si256(load_bytes(codes + at), most), most));
    return !_mm256_testz_si256(found, found);
}

/* 16 floats times factor as words. */
INLINE __m256i words_of(__m256 low, __m256 high, float factor) {
    const __m256i first = _mm256_cvtps_epi32(_mm256_mul_ps(low, _mm256_set1_ps(factor)));
    const __m256i second = _mm256_cvtps_epi32(_mm256_mul_ps(high, _mm256_set1_ps(factor)));
    return _mm256_permute4x64_epi64(_mm256_packs_epi32(first, second), 0xd8);
}

/* 32 fp8 codes in quarters: mantissa * 2^(exponent - 8), by a product that rounds. */
INLINE void words_of_fp8(__m256i code, __m256i *words) {
    const __m256i low_power = _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 1, 2, 4, 8, 16, 32, 64, -128, 0, 0, 0, 0, 0, 0, 0));
    const __m256i high_power = _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 2, 4, 8, 16, 32, 64));
    const __m256i exponent = _mm256_and_si256(_mm256_srli_epi16(code, 3), _mm256_set1_epi8(15));
    const __m256i low = _mm256_shuffle_epi8(low_power, exponent), high = _mm256_shuffle_epi8(high_power, exponent);
    const __m256i mantissa = _mm256_or_si256(_mm256_and_si256(code, _mm256_set1_epi8(7)), _mm256_set1_epi8(8));
    const __m256i with_sign = _mm256_sign_epi8(mantissa, code), none = _mm256_setzero_si256();
    words[0] = _mm256_mulhrs_epi16(_mm256_unpacklo_epi8(none, with_sign), _mm256_unpacklo_epi8(low, high));
    words[1] = _mm256_mulhrs_epi16(_mm256_unpackhi_epi8(none, with_sign), _mm256_unpackhi_epi8(low, high));
}

/* WORD_STEP values as words; factor: for floats. */
INLINE void decode_words(int format, const uint8_t *from, int64_t offset, float factor, __m256i *words) {
    if (format == FP8) {
        words_of_fp8(_mm256_permute4x64_epi64(load_bytes(from), 0xd8), words);
        return;
    }
    for (int half = 0; half < 2; half++) {
        if (format == INT8) {
            const __m128i codes = _mm_loadu_si128((const __m128i *)(from + 16 * half));
            words[half] = _mm256_cvtepi8_epi16(_mm_xor_si128(codes, _mm_set1_epi8((char)offset)));
        } else if (format == INT4) {
            const __m256i pair = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(from + 8 * half)));
            const __m256i apart = _mm256_and_si256(_mm256_or_si256(pair, _mm256_slli_epi32(pair, 12)), _mm256_set1_epi16(15));
            words[half] = _mm256_sub_epi16(apart, _mm256_set1_epi16(8));
        } else if (format == BF16) {
            const __m256i pair = load_bytes(from + 32 * half), upper = _mm256_set1_epi32((int)0xffff0000);
            const __m256 even = (__m256)_mm256_slli_epi32(pair, 16), odd = (__m256)_mm256_and_si256(pair, upper);
            const __m256i first = _mm256_cvtps_epi32(_mm256_mul_ps(even, _mm256_set1_ps(factor)));
            const __m256i second = _mm256_cvtps_epi32(_mm256_mul_ps(odd, _mm256_set1_ps(factor)));
            words[half] = _mm256_blend_epi16(first, _mm256_slli_epi32(second, 16), 0xaa);
        } else if (format == F16) {
            const __m256i codes = load_bytes(from + 32 * half);
            const __m256 high = _mm256_cvtph_ps(_mm256_extracti128_si256(codes, 1));
            words[half] = words_of(_mm256_cvtph_ps(_mm256_castsi256_si128(codes)), high, factor);
        } else {
            const float *floats = (const float *)from + 16 * half;
            words[half] = words_of(_mm256_loadu_ps(floats), _mm256_loadu_ps(floats + 8), factor);
        }
    }
}

#if defined(__AVX512F__)
/* The same in one vector. */
INLINE __m512i decode_more_words(int format, const uint8_t *from, int64_t offset, float factor) {
    __m256i half[2];
    if (format == BF16) {
        const __m512i pair = _mm512_loadu_si512(from), odd = _mm512_and_si512(pair, _mm512_set1_epi32((int)0xffff0000));
        const __m512 even = _mm512_castsi512_ps(_mm512_slli_epi32(pair, 16)), many = _mm512_set1_ps(factor);
        const __m512i first = _mm512_cvtps_epi32(_mm512_mul_ps(even, many));
        const __m512i second = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_castsi512_ps(odd), many));
        return _mm512_mask_blend_epi16(0xaaaaaaaa, first, _mm512_slli_epi32(second, 16));
    }
    decode_words(format, from, offset, factor, half);
    return _mm512_inserti64x4(_mm512_castsi256_si512(half[0]), half[1], 1);
}
#endif

#if LOOKS_UP_FP8
/* Both bytes of each fp8 code's word, its sign left out. */
static uint8_t fp8_low_words[128], fp8_high_words[128];

__attribute__((constructor)) static void fill_fp8_words(void) {
    uint8_t codes[32];
    _Alignas(32) uint16_t words[32];
    for (int first = 0; first < 128; first += 32) {
        for (int i = 0; i < 32; i++) codes[i] = (uint8_t)(first + i);
        decode_words(FP8, codes, 0, 0, (__m256i *)words);
        for (int i = 0; i < 32; i++) {
            fp8_low_words[first + i] = (uint8_t)words[i];
            fp8_high_words[first + i] = (uint8_t)(words[i] >> 8);
        }
    }
}
#endif

/* A packed x row: K words, then the unit of each turn. */
INLINE int64_t word_lane_row_bytes(const Matrix *w) { return round_up(2 * w->k + 4 * (w->k / WORD_STEP), 64); }

static inline void pack_words(const Matrix *w, const float *x, uint8_t *packed) {
    const int64_t turn = word_turn(w);
    float *unit = (float *)(packed + 2 * w->k);
    for (int64_t k = 0; k < w->k; unit++) {
        const int64_t end = least(k + turn, w->k);
        const float size = largest_of(F32, (const uint8_t *)(x + k), end - k), most = (float)activation_most(w);
        const float factor = size > 0 ? most / size : 0;
        *unit = size / most;
        for (; k < end; k += WORD_STEP) decode_words(F32, (const uint8_t *)(x + k), 0, factor, (__m256i *)(packed + 2 * k));
    }
}

/* WORD_STEP columns of LANES rows, from byte `at` on, as panel of words; what lies `ahead` is prefetched. */
INLINE void transpose_words(int format, const uint8_t *const *row, int64_t at, int64_t ahead, int64_t offset,
                            const float *factor, int32_t (*panel)[WORD_LANE_ROWS]) {
    vfloat words[WORD_STEP / 2 / LANES][LANES], column[LANES];
    for (int i = 0; i < LANES; i++) {
        prefetch(row[i] + at + ahead);
#if defined(__AVX512F__)
        words[0][i] = (vfloat)decode_more_words(format, row[i] + at, offset, factor[i]);
#else
        __m256i decoded[2];
        decode_words(format, row[i] + at, offset, factor[i], decoded);
        words[0][i] = (vfloat)decoded[0];
        words[1][i] = (vfloat)decoded[1];
#endif
    }
    for (int v = 0; v < WORD_STEP / 2 / LANES; v++) {
        transpose(words[v], column);
        for (int c = 0; c < LANES; c++) vstore((float *)panel[v * LANES + c], column[c]);
    }
}

#if LOOKS_UP_FP8
/* 64 columns of fp8, transposed by fours; then each code becomes a word, and fours become two pairs. */
INLINE void transpose_fp8_words(const uint8_t *const *row, int64_t at, int64_t ahead, int32_t (*panel)[WORD_LANE_ROWS]) {
    const __m512i low0 = _mm512_loadu_si512(fp8_low_words), low1 = _mm512_loadu_si512(fp8_low_words + 64);
    const __m512i high0 = _mm512_loadu_si512(fp8_high_words), high1 = _mm512_loadu_si512(fp8_high_words + 64);
    const __m512i lane = _mm512_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28, 32, 36, 40, 44, 48, 52, 56, 60);
    const __m512i first = _mm512_add_epi8(_mm512_mullo_epi32(lane, _mm512_set1_epi32(0x01010101)),
                                          _mm512_set1_epi32(0x41014000)); /* low and high byte 0, then 1 */
    const __m512i second = _mm512_add_epi8(first, _mm512_set1_epi8(2)), none = _mm512_setzero_si512();
    vfloat codes[16], column[16];
    for (int i = 0; i < 16; i++) {
        prefetch(row[i] + at + ahead);
        memcpy(codes + i, row[i] + at, sizeof *codes);
    }
    transpose(codes, column);
    for (int i = 0; i < 16; i++) {
        const __m512i code = (__m512i)column[i];
        const uint64_t negative = _mm512_movepi8_mask(code);
        const __m512i low = _mm512_permutex2var_epi8(low0, code, low1), high = _mm512_permutex2var_epi8(high0, code, high1);
        for (int half = 0; half < 2; half++) {
            const __mmask32 some = (__mmask32)_pext_u64(negative, half ? 0xcccccccccccccccc : 0x3333333333333333);
            const __m512i words = _mm512_permutex2var_epi8(low, half ? second : first, high);
            _mm512_storeu_si512(panel[2 * i + half], _mm512_mask_sub_epi16(words, some, none, words));
        }
    }
}
#endif

/* Columns [k, k + width) of LANES weight rows, from row `first` on, as panel with units; rows from `last` on are as the one
 * before. */
INLINE void word_lane_panel(int format, const Matrix *w, int64_t first, int64_t last, int64_t k, int64_t width,
                            int32_t (*panel)[WORD_LANE_ROWS], float (*unit)[WORD_LANE_ROWS]) {
    const int64_t turn = word_turn(w), bits = code_bits(format), ahead = WORD_LANE_ROWS * w->row_bytes;
    const uint8_t *row[LANES];
    int64_t scale[LANES];
    for (int i = 0; i < LANES; i++) {
        const int64_t n = least(first + i, last - 1);
        row[i] = codes_of(w, n) + k * bits / 8;
        scale[i] = first_scale(w, n);
    }
    for (int64_t t = 0, at = 0; at < width; t++) {
        const int64_t end = least(at + turn, width), group = (k + at) / w->group_size;
        float factor[LANES];
        for (int i = 0; i < LANES; i++) {
            unit[t][i] = scale_at(w, scale[i] + group);
            if (format == FP8) unit[t][i] *= any_nan(row[i] + at, end - at) ? NAN : 0.25f;
            if (format <= BF16) {
                const float size = largest_of(format, row[i] + at * bits / 8, end - at);
                factor[i] = size > 0 ? (float)weight_most(format) / size : 0;
                unit[t][i] *= size / (float)weight_most(format);
            }
        }
#if LOOKS_UP_FP8
        for (; format == FP8 && at + 64 <= end; at += 64) transpose_fp8_words(row, at, ahead, panel + at / 2);
#endif
        for (; at < end; at += WORD_STEP)
            transpose_words(format, row, at * bits / 8, ahead, w->offset, factor, panel + at / 2);
    }
}

/* sum + products of two words with two words, in each lane. */
INLINE vint add_pairs(vint sum, vint a, vint b) {
#if defined(__AVX512VNNI__)
    return (vint)_mm512_dpwssd_epi32((__m512i)sum, (__m512i)a, (__m512i)b);
#elif defined(__AVX512F__)
    return sum + (vint)_mm512_madd_epi16((__m512i)a, (__m512i)b);
#else
    return sum + (vint)_mm256_madd_epi16((__m256i)a, (__m256i)b);
#endif
}

/* sum[j] += unit * the x row's unit * the products of pairs [first, last) of the block with `x_rows` packed x rows. */
INLINE void word_lane_tile(int x_rows, int32_t (*panel)[WORD_LANE_ROWS], int64_t first, int64_t last, const float *unit,
                           const uint8_t *const *x, const float *const *x_unit, int64_t turn,
                           float (*sum)[WORD_LANE_ROWS]) {
    vint part[LANE_X_ROWS][2];
    for (int j = 0; j < x_rows; j++) part[j][0] = part[j][1] = (vint){0};
    for (int64_t q = first; q < last; q++) {
        const vint low = *(const vint *)panel[q], high = *(const vint *)(panel[q] + LANES);
        for (int j = 0; j < x_rows; j++) {
            const vint spread = *(const int32_t *)(x[j] + 4 * q) - (vint){0}; /* as vset */
            part[j][0] = add_pairs(part[j][0], low, spread);
            part[j][1] = add_pairs(part[j][1], high, spread);
        }
    }
    for (int half = 0; half < 2; half++) {
        const vfloat factor = vload(unit + half * LANES);
        for (int j = 0; j < x_rows; j++) {
            float *to = sum[j] + half * LANES;
            vstore(to, vload(to) + factor * vset(x_unit[j][turn]) * __builtin_convertvector(part[j][half], vfloat));
        }
    }
}

/* All turns of the block, which begins with column k, with `x_rows` packed x rows. */
INLINE void word_lane_turns(int x_rows, const Matrix *w, WordLaneSpace *space, int64_t k, int64_t width,
                            const uint8_t *packed, float (*sum)[WORD_LANE_ROWS]) {
    const int64_t bytes = word_lane_row_bytes(w), turn = word_turn(w);
    const uint8_t *x[LANE_X_ROWS];
    const float *unit[LANE_X_ROWS];
    for (int j = 0; j < x_rows; j++) {
        x[j] = packed + j * bytes + 2 * k;
        unit[j] = (const float *)(packed + j * bytes + 2 * w->k) + k / turn;
    }
    for (int64_t t = 0, at = 0; at < width; t++, at += turn)
        word_lane_tile(x_rows, space->panel, at / 2, least(at + turn, width) / 2, space->unit[t], x, unit, t, sum);
}

/* Rows [first, last), at most WORD_LANE_ROWS, with `x_rows` packed x rows, at most WORD_LANE_PASS. */
static inline void word_lane_pass(const Matrix *w, int64_t first, int64_t last, const uint8_t *packed, int64_t x_rows,
                                  WordLaneSpace *space) {
    const int64_t bytes = word_lane_row_bytes(w);
    memset(space->sum, 0, (size_t)x_rows * sizeof *space->sum);
    for (int64_t k = 0; k < w->k; k += WORD_LANE_BLOCK) {
        const int64_t width = least(w->k - k, WORD_LANE_BLOCK);
        for (int half = 0; half < WORD_LANE_ROWS; half += LANES) {
            int32_t(*panel)[WORD_LANE_ROWS] = (int32_t(*)[WORD_LANE_ROWS]) & space->panel[0][half];
            float(*unit)[WORD_LANE_ROWS] = (float(*)[WORD_LANE_ROWS]) & space->unit[0][half];
            switch (w->format) {
            case F32: word_lane_panel(F32, w, first + half, last, k, width, panel, unit); break;
            case F16: word_lane_panel(F16, w, first + half, last, k, width, panel, unit); break;
            case BF16: word_lane_panel(BF16, w, first + half, last, k, width, panel, unit); break;
            case FP8: word_lane_panel(FP8, w, first + half, last, k, width, panel, unit); break;
            case INT8: word_lane_panel(INT8, w, first + half, last, k, width, panel, unit); break;
            default: word_lane_panel(INT4, w, first + half, last, k, width, panel, unit);
            }
        }
        for (int64_t j = 0, count; j < x_rows; j += count) {
            count = even_part(x_rows - j);
#define TAKE(count)                                                                                                    \
    case count: word_lane_turns(count, w, space, k, width, packed + j * bytes, space->sum + j); break;
            switch (count) { EACH_COUNT(TAKE) }
#undef TAKE
        }
    }
}

/* out[j * out_stride + n - first] = W[n] . x[j] for rows [first, last) and packed rows x. */
static inline void word_lanes(const Matrix *w, int64_t first, int64_t last, const uint8_t *packed, int64_t x_rows,
                              float *out, int64_t out_stride, WordLaneSpace *space) {
    for (int64_t j = 0; j < x_rows; j += WORD_LANE_PASS, packed += WORD_LANE_PASS * word_lane_row_bytes(w)) {
        const int64_t count = least(x_rows - j, WORD_LANE_PASS);
        for (int64_t n = first; n < last; n += WORD_LANE_ROWS) {
            const int64_t rows = least(last - n, WORD_LANE_ROWS);
            word_lane_pass(w, n, n + rows, packed, count, space);
            for (int64_t c = 0; c < count; c++)
                memcpy(out + (j + c) * out_stride + (n - first), space->sum[c], (size_t)rows * sizeof(float));
        }
    }
}

#endif
#endif
