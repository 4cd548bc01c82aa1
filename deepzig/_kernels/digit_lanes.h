/* Digits in registers whose lanes are weight rows: prompts, and many decoded rows, of int8 and int4 weights on CPUs with
 * VNNI but without AMX. See digits.h for the numbers; the functions are those of digit_tiles.h.
 *
 * Included by ways.h. Blocks of DIGIT_LANE_ROWS weight rows x DIGIT_LANE_BLOCK columns are transposed, so that one vector
 * holds four columns of 16 rows, and stay in L1 while packed x rows go by, four columns of which are spread over all lanes.
 * So sums need no adding across lanes, which takes as long as the products of digits.h do. The whole numbers are the same,
 * and are joined, scaled and added in the same order.
 */
#ifndef DEEPZIG_DIGIT_LANES_H
#define DEEPZIG_DIGIT_LANES_H

#include "digits.h"

#if HAS_DIGITS && !defined(__AMX_INT8__)

#define DIGIT_LANE_ROWS 32
#define DIGIT_LANE_BLOCK 512
#define DIGIT_LANE_TURNS (DIGIT_LANE_BLOCK / 32) /* most of a block */
#define DIGIT_LANE_PASS 128                      /* x rows that meet a block before it is made again */
#define DIGIT_LANE_SUMS 12                       /* of DIGIT_LANE_ROWS: what registers hold beside a vector of each operand */

typedef struct {
    uint8_t panel[DIGIT_LANE_BLOCK / 4][DIGIT_LANE_ROWS][4];
    float scale[DIGIT_LANE_TURNS][DIGIT_LANE_ROWS];
    float sum[DIGIT_LANE_PASS][DIGIT_LANE_ROWS];
} DigitLaneSpace;

INLINE int takes_digit_tiles(const Matrix *w) { return takes_digits(w) && joined_in_groups(w); }

/* A packed x row: (K / 4, digits, 4) bytes; for each turn what its sums start with, int32 (digits), and its unit, float. */
INLINE int64_t digit_lane_row_bytes(const Matrix *w, int digits) {
    const int64_t turns = parts_of(w->k, joined_columns(w));
    return round_up(digits * w->k + 4 * (digits + 1) * turns, 64);
}

INLINE int64_t digit_blocks_bytes(const Matrix *w, int64_t x_rows, int digits) {
    return x_rows * digit_lane_row_bytes(w, digits);
}

INLINE void pack_digit_lane_row(int digits, const Matrix *w, const float *x, uint8_t *packed) {
    const __m512i order = digits == 3 ? _mm512_setr_epi32(0, 4, 8, 1, 5, 9, 2, 6, 10, 3, 7, 11, 12, 13, 14, 15)
                                      : _mm512_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const int64_t turn = joined_columns(w), columns = largest_columns(w);
    DigitScale next = digit_scale(x, least(columns, w->k), digits), scale = next;
    int32_t *start = (int32_t *)(packed + digits * w->k);
    for (int64_t k = 0; k < w->k; start += digits + 1) {
        if (k % columns == 0) {
            scale = next;
            next = digit_scale(x + k + columns, least(columns, w->k - k - columns), digits); /* as in split_digits */
        }
        __m512i sum[DIGITS_MOST] = {_mm512_setzero_si512(), _mm512_setzero_si512(), _mm512_setzero_si512()};
        for (const int64_t end = least(k + turn, w->k); k < end; k += 16) {
            __m512i digit[DIGITS_MOST], quads;
            take_digits(x + k, scale.factor, digits, digit);
            for (int d = 0; d < digits; d++) sum[d] = _mm512_add_epi32(sum[d], digit[d]);
            quads = _mm512_castsi128_si512(_mm512_cvtepi32_epi8(digit[0]));
            quads = _mm512_inserti32x4(quads, _mm512_cvtepi32_epi8(digit[1]), 1);
            if (digits == 3) quads = _mm512_inserti32x4(quads, _mm512_cvtepi32_epi8(digit[2]), 2);
            const __mmask16 some = digits == 3 ? 0xfff : 0xff;
            _mm512_mask_storeu_epi32(packed + digits * k, some, _mm512_permutexvar_epi32(order, quads));
        }
        for (int d = 0; d < digits; d++) start[d] = -code_offset(w) * _mm512_reduce_add_epi32(sum[d]);
        memcpy(start + digits, &scale.unit, 4);
    }
}

/* Packed x rows. */
static inline void pack_digit_blocks(const Matrix *w, const float *const *x, int64_t x_rows, int digits,
                                     uint8_t *packed, uint8_t *space) {
    for (int64_t j = 0; j < x_rows; j++, packed += digit_lane_row_bytes(w, digits)) {
        if (digits == 2) pack_digit_lane_row(2, w, x[j], packed);
        else pack_digit_lane_row(3, w, x[j], packed);
    }
}

/* 64 columns of 16 rows, `codes`, as panel: codes without sign, transposed; those that lie `ahead` are prefetched. */
INLINE void transpose_codes(int format, const uint8_t *const *codes, int64_t at, int64_t ahead, __m512i flip,
                            uint8_t (*panel)[DIGIT_LANE_ROWS][4]) {
    vfloat row[16], column[16];
    for (int i = 0; i < 16; i++) {
        prefetch(codes[i] + at + ahead);
        if (format == INT8) {
            row[i] = (vfloat)_mm512_loadu_si512(codes[i] + at);
        } else {
            const __m512i pairs = _mm512_cvtepu8_epi16(_mm256_loadu_si256((const __m256i *)(codes[i] + at)));
            const __m512i nibbles = _mm512_or_si512(pairs, _mm512_slli_epi16(pairs, 4));
            row[i] = (vfloat)_mm512_and_si512(nibbles, _mm512_set1_epi8(15));
        }
    }
    transpose(row, column);
    for (int i = 0; i < 16; i++) {
        const __m512i value = format == INT8 ? _mm512_xor_si512((__m512i)column[i], flip) : (__m512i)column[i];
        _mm512_storeu_si512(panel[i][0], value);
    }
}

/* Columns [k, k + width) of rows [first, last), transposed, and their scales; rows beyond the last are as the last. */
static inline void digit_lane_panel(const Matrix *w, int64_t first, int64_t last, int64_t k, int64_t width, DigitLaneSpace *space) {
    const int64_t ahead = DIGIT_LANE_ROWS * w->row_bytes, group = k / w->group_size;
    const int64_t turns = parts_of(width, joined_columns(w));
    const __m512i flip = code_flip(w);
    const uint8_t *codes[DIGIT_LANE_ROWS];
    for (int i = 0; i < DIGIT_LANE_ROWS; i++) {
        const int64_t n = least(first + i, last - 1), scale = first_scale(w, n) + group;
        codes[i] = codes_of(w, n) + (w->format == INT4 ? k / 2 : k);
        for (int64_t t = 0; t < turns; t++) space->scale[t][i] = scale_at(w, scale + t); /* a turn is a group, or all */
    }
    for (int half = 0; half < DIGIT_LANE_ROWS; half += 16)
        for (int64_t at = 0; at < width; at += 64) {
            uint8_t(*panel)[DIGIT_LANE_ROWS][4] = (uint8_t(*)[DIGIT_LANE_ROWS][4])space->panel[at / 4][half];
            if (w->format == INT8) transpose_codes(INT8, codes + half, at, ahead, flip, panel);
            else transpose_codes(INT4, codes + half, at / 2, ahead, flip, panel);
        }
}

/* sum[j] += the products of the block's `turn`, quads [first, last), with `x_rows` packed x rows. */
INLINE void digit_lane_tile(int digits, int x_rows, const DigitLaneSpace *space, int64_t turn, int64_t first,
                            int64_t last, const uint8_t *const *x, const int32_t *const *start,
                            float (*sum)[DIGIT_LANE_ROWS]) {
    __m512i part[DIGIT_LANE_SUMS / 2][DIGITS_MOST][2];
    for (int j = 0; j < x_rows; j++)
        for (int d = 0; d < digits; d++)
            part[j][d][0] = part[j][d][1] = _mm512_set1_epi32(start[j][turn * (digits + 1) + d]);
    for (int64_t q = first; q < last; q++) {
        const __m512i low = _mm512_loadu_si512(space->panel[q][0]), high = _mm512_loadu_si512(space->panel[q][16]);
        for (int j = 0; j < x_rows; j++)
            for (int d = 0; d < digits; d++) {
                int32_t quad;
                memcpy(&quad, x[j] + 4 * (digits * q + d), 4);
                const __m512i spread = _mm512_set1_epi32(quad);
                part[j][d][0] = add_quads(part[j][d][0], low, spread);
                part[j][d][1] = add_quads(part[j][d][1], high, spread);
            }
    }
    for (int half = 0; half < 2; half++) {
        const __m512 factor = _mm512_loadu_ps(space->scale[turn] + 16 * half);
        for (int j = 0; j < x_rows; j++) {
            const __m512 value = join_digits(digits, part[j][0][half], part[j][1][half], part[j][2][half]);
            const __m512 unit = _mm512_castsi512_ps(_mm512_set1_epi32(start[j][turn * (digits + 1) + digits]));
            float *to = sum[j] + 16 * half;
            _mm512_storeu_ps(to, _mm512_fmadd_ps(_mm512_mul_ps(factor, unit), value, _mm512_loadu_ps(to)));
        }
    }
}

/* All turns of the block, which begins with column k, with `x_rows` packed x rows. */
INLINE void digit_lane_turns(int digits, int x_rows, const Matrix *w, const DigitLaneSpace *space, int64_t k,
                             int64_t width, const uint8_t *packed, float (*sum)[DIGIT_LANE_ROWS]) {
    const int64_t bytes = digit_lane_row_bytes(w, digits), turn = joined_columns(w);
    const uint8_t *x[DIGIT_LANE_SUMS / 2];
    const int32_t *start[DIGIT_LANE_SUMS / 2];
    for (int j = 0; j < x_rows; j++) {
        x[j] = packed + j * bytes + digits * k;
        start[j] = (const int32_t *)(packed + j * bytes + digits * w->k) + (digits + 1) * (k / turn);
    }
    for (int64_t t = 0, at = 0; at < width; t++, at += turn)
        digit_lane_tile(digits, x_rows, space, t, at / 4, least(at + turn, width) / 4, x, start, sum);
}

/* Rows [first, last), at most DIGIT_LANE_ROWS, with `x_rows` packed x rows, at most DIGIT_LANE_PASS. */
INLINE void digit_lane_pass(int digits, const Matrix *w, int64_t first, int64_t last, const uint8_t *packed,
                            int64_t x_rows, float *out, int64_t out_stride, DigitLaneSpace *space) {
    const int64_t bytes = digit_lane_row_bytes(w, digits), turn = joined_columns(w);
    const int64_t block = DIGIT_LANE_BLOCK / turn * turn;
    const int at_once = DIGIT_LANE_SUMS / digits;
    memset(space->sum, 0, (size_t)x_rows * sizeof *space->sum);
    for (int64_t k = 0; k < w->k; k += block) {
        const int64_t width = least(block, w->k - k);
        digit_lane_panel(w, first, last, k, width, space);
        for (int64_t j = 0; j < x_rows; j += at_once) {
            const uint8_t *x = packed + j * bytes;
            switch (least(x_rows - j, at_once)) {
            case 1: digit_lane_turns(digits, 1, w, space, k, width, x, space->sum + j); break;
            case 2: digit_lane_turns(digits, 2, w, space, k, width, x, space->sum + j); break;
            case 3: digit_lane_turns(digits, 3, w, space, k, width, x, space->sum + j); break;
            case 4: digit_lane_turns(digits, 4, w, space, k, width, x, space->sum + j); break;
            case 5: digit_lane_turns(digits, digits == 2 ? 5 : 4, w, space, k, width, x, space->sum + j); break;
            default: digit_lane_turns(digits, digits == 2 ? 6 : 4, w, space, k, width, x, space->sum + j);
            }
        }
    }
    const size_t size = (size_t)(last - first) * sizeof(float);
    for (int64_t j = 0; j < x_rows; j++) memcpy(out + j * out_stride, space->sum[j], size);
}

/* Floats of `space` that digit_blocks needs. */
INLINE int64_t digit_blocks_space(const Matrix *w, int64_t rows) { return sizeof(DigitLaneSpace) / sizeof(float); }

/* out[j * out_stride + n - first] = W[n] . x[j] for rows [first, last) and packed rows x. */
static inline void digit_blocks(const Matrix *w, int64_t first, int64_t last, const uint8_t *packed, int64_t x_rows,
                                int digits, float *out, int64_t out_stride, const void *next, float *space) {
    for (int64_t j = 0; j < x_rows; j += DIGIT_LANE_PASS, packed += DIGIT_LANE_PASS * digit_lane_row_bytes(w, digits)) {
        const int64_t count = least(x_rows - j, DIGIT_LANE_PASS);
        for (int64_t n = first; n < last; n += DIGIT_LANE_ROWS) {
            const int64_t end = least(n + DIGIT_LANE_ROWS, last);
            float *to = out + j * out_stride + (n - first);
            if (digits == 2) digit_lane_pass(2, w, n, end, packed, count, to, out_stride, (DigitLaneSpace *)space);
            else digit_lane_pass(3, w, n, end, packed, count, to, out_stride, (DigitLaneSpace *)space);
        }
    }
}

#endif
#endif
