/* Digits in AMX tiles: prompts with int8 and int4 weights. See digits.h for the numbers.
 *
 * Included by ways.h. Weight rows become a panel of tiles A, 16 rows x 64 columns of bytes; packed x rows are tiles B, 64
 * columns x 16 digits: 5 rows of three digits or 8 of two. Each digit's group sums times scales are added by themselves,
 * and digits come together last: no row meets another.
 */
#ifndef DEEPZIG_DIGIT_TILES_H
#define DEEPZIG_DIGIT_TILES_H

#include "amx.h"
#include "digits.h"

#if defined(__AMX_INT8__)

#define DIGIT_BLOCK_STEPS 8       /* steps of K whose packed tiles stay in L1 while weight rows pass */
#define DIGIT_MOST_K 65536        /* sums of so many products of a code and a digit fit 32 bits */

/* Whether tiles can multiply w: a step of 64 columns has one scale, and the steps of a block are whole groups. */
INLINE int takes_digit_tiles(const Matrix *w) {
    if (!takes_digits(w) || w->k > DIGIT_MOST_K) return 0;
    return w->group_size >= w->k || (w->group_size >= 64 && DIGIT_BLOCK_STEPS * DIGIT_STEP % w->group_size == 0);
}

INLINE int64_t digit_groups(const Matrix *w) { return (w->k + w->group_size - 1) / w->group_size; }

/* x rows of a packed block. */
INLINE int64_t digit_block_rows(int digits) { return digits == 3 ? 5 : 8; }

/* A packed block: tiles (K / 64, 16, 16, 4), where sums start (groups, 16) int32, scales of x rows (16) float. */
INLINE int64_t digit_block_bytes(const Matrix *w) { return 16 * w->k + 64 * digit_groups(w) + 64; }

/* One x row into the columns c, c + rows, ... of a packed block; `space` holds 3 K bytes. */
static inline void pack_digit_column(const Matrix *w, const float *x, int digits, int64_t c, uint8_t *block,
                                     uint8_t *space) {
    const int64_t groups = digit_groups(w), rows = digit_block_rows(digits);
    int32_t *starts = (int32_t *)(block + 16 * w->k);
    float *scale = (float *)(starts + 16 * groups);
    const __m512i offset = _mm512_set1_epi8((char)code_offset(w));
    scale[c] = split_digits(x, w->k, digits, space) * (digits == 3 ? 65536.0f : 256.0f);
    for (int d = 0; d < digits; d++)
        for (int64_t g = 0; g < groups; g++) {
            const int64_t end = (g + 1) * w->group_size < w->k ? (g + 1) * w->group_size : w->k;
            __m512i sum = _mm512_setzero_si512();
            for (int64_t k = g * w->group_size; k < end; k += DIGIT_STEP) {
                uint8_t *bytes = space + d * w->k + k, *tile = block + 16 * k + 4 * (c + d * rows);
                if (w->format == INT4) sort_nibbles(bytes, 32);
                sum = _mm512_dpbusd_epi32(sum, offset, _mm512_loadu_si512(bytes));
                for (int quad = 0; quad < 16; quad++) memcpy(tile + 64 * quad, bytes + 4 * quad, 4);
            }
            starts[16 * g + c + d * rows] = -_mm512_reduce_add_epi32(sum);
        }
}

/* Packed blocks of `columns` x rows. */
static inline void pack_digit_blocks(const Matrix *w, const float *const *x, int64_t columns, int digits, uint8_t *packed,
                                     uint8_t *space) {
    const int64_t rows = digit_block_rows(digits), bytes = digit_block_bytes(w);
    for (int64_t j = 0; j < columns; j += rows, packed += bytes) {
        if (columns - j < rows || digits == 3) memset(packed, 0, (size_t)bytes);
        for (int64_t c = 0; c < rows && j + c < columns; c++) pack_digit_column(w, x[j + c], digits, c, packed, space);
    }
}

/* Rows [first, last) of w as tiles (rows / 16, K / 64, 16, 64); those beyond the last are zero. */
static inline void digit_panel(const Matrix *w, int64_t first, int64_t last, uint8_t *panel) {
    const int64_t steps = w->k / DIGIT_STEP;
    const __m512i flip = code_flip(w);
    const __m256i low = _mm256_set1_epi8(15);
    for (int64_t i = 0; i < (last - first + 15) / 16 * 16; i++) {
        const uint8_t *codes = (const uint8_t *)w->codes + (first + i) * w->row_bytes;
        uint8_t *to = panel + i / 16 * steps * 1024 + i % 16 * 64;
        for (int64_t s = 0; s < steps; s++, to += 1024) {
            if (first + i >= last) {
                memset(to, 0, 64);
            } else if (w->format == INT4) {
                __m256i pairs = _mm256_loadu_si256((const __m256i *)(codes + 32 * s));
                _mm256_storeu_si256((__m256i *)to, _mm256_and_si256(pairs, low));
                _mm256_storeu_si256((__m256i *)(to + 32), _mm256_and_si256(_mm256_srli_epi16(pairs, 4), low));
            } else {
                _mm512_storeu_si512(to, _mm512_xor_si512(_mm512_loadu_si512(codes + 64 * s), flip));
            }
        }
    }
}

/* sum[16][16] += scale[row * groups] * product, for one group of 16 weight rows and the digits of one block. */
INLINE void digit_collect(float *sum, const float *scale, int64_t groups, int32_t (*product)[16]) {
    for (int i = 0; i < 16; i++) {
        vfloat value = (vfloat)_mm512_cvtepi32_ps(_mm512_loadu_si512(product[i]));
        vstore(sum + 16 * i, vload(sum + 16 * i) + vset(scale[i * groups]) * value);
    }
}

/* Tiles C and D: products of one group of 16 weight rows with two blocks. */
#define DIGIT_GROUP(C, D)                                                                                               \
    do {                                                                                                               \
        _tile_loadd(C, start0, 0);                                                                                     \
        _tile_loadd(D, start1, 0);                                                                                     \
        for (int64_t s = 0; s < steps; s++) {                                                                          \
            _tile_loadd(4, weights + 1024 * s, 64);                                                                    \
            _tile_loadd(6, x0 + 1024 * s, 64);                                                                         \
            _tile_dpbusd(C, 4, 6);                                                                                     \
            _tile_loadd(7, x1 + 1024 * s, 64);                                                                         \
            _tile_dpbusd(D, 4, 7);                                                                                     \
        }                                                                                                              \
        _tile_stored(C, product[0], 64);                                                                               \
        _tile_stored(D, product[1], 64);                                                                               \
    } while (0)

INLINE void digit_group(int which, const uint8_t *weights, const uint8_t *x0, const uint8_t *x1, const int32_t *start0,
                        const int32_t *start1, int64_t steps, int32_t (*product)[16][16]) {
    if (which) DIGIT_GROUP(0, 1);
    else DIGIT_GROUP(2, 3);
}

/* A line of memory that is called for while others are multiplied: weights that come next. */
typedef struct {
    const uint8_t *next;
    int64_t lines, lines_a_group;
} CallAhead;

INLINE void call_ahead(CallAhead *ahead) {
    for (int64_t i = 0; i < ahead->lines_a_group && ahead->lines > 0; i++, ahead->lines--, ahead->next += 64)
        __builtin_prefetch(ahead->next, 0, 2);
}

/* sum (rows / 16, 2, 16, 16) of the panel's rows with blocks x0 and x1. Each group is collected one later, while the
 * tiles work on the next; so is the last of a block of steps. */
static inline void digit_pair(const Matrix *w, const uint8_t *panel, int64_t rows, const float *scale, const uint8_t *x0,
                              const uint8_t *x1, float *sum, CallAhead *ahead) {
    const int64_t steps = w->k / DIGIT_STEP, groups = digit_groups(w);
    const int64_t group_steps = w->group_size < w->k ? w->group_size / DIGIT_STEP : steps;
    const int64_t block_steps = group_steps > DIGIT_BLOCK_STEPS ? group_steps : DIGIT_BLOCK_STEPS;
    const int32_t *start0 = (const int32_t *)(x0 + 16 * w->k), *start1 = (const int32_t *)(x1 + 16 * w->k);
    int32_t product[2][2][16][16];
    float *sum_before = NULL;
    const float *scale_before = NULL;
    int which = 0;
    memset(sum, 0, (size_t)(rows / 16) * 2048);
    for (int64_t block = 0; block < steps; block += block_steps)
        for (int64_t r = 0; r < rows / 16; r++)
            for (int64_t s = block; s < block + block_steps && s < steps; s += group_steps, which ^= 1) {
                const int64_t g = s / group_steps, count = steps - s < group_steps ? steps - s : group_steps;
                digit_group(which, panel + (r * steps + s) * 1024, x0 + 1024 * s, x1 + 1024 * s, start0 + 16 * g,
                            start1 + 16 * g, count, product[which]);
                call_ahead(ahead);
                if (sum_before) {
                    digit_collect(sum_before, scale_before, groups, product[1 - which][0]);
                    digit_collect(sum_before + 256, scale_before, groups, product[1 - which][1]);
                }
                sum_before = sum + 512 * r;
                scale_before = scale + 16 * r * groups + g;
            }
    digit_collect(sum_before, scale_before, groups, product[1 - which][0]);
    digit_collect(sum_before + 256, scale_before, groups, product[1 - which][1]);
}

/* out[j * out_stride + i] of 16 weight rows and the x rows of one block, from the sums of its digits. */
INLINE void join_digits(const float *sum, const float *scale, int digits, int64_t columns, __mmask16 rows, float *out,
                        int64_t out_stride) {
    const int64_t width = digit_block_rows(digits);
    vfloat digit[16];
    transpose16(sum, digit);
    for (int64_t j = 0; j < columns; j++) {
        vfloat value = digit[(digits - 1) * width + j];
        for (int64_t d = digits - 2; d >= 0; d--) value = value * 0.00390625f + digit[d * width + j];
        _mm512_mask_storeu_ps(out + j * out_stride, rows, (__m512)(value * scale[j]));
    }
}

/* Floats of `space` that digit_blocks needs for so many weight rows: scales, sums of two blocks, and the panel. */
INLINE int64_t digit_blocks_space(const Matrix *w, int64_t rows) {
    rows = (rows + 15) / 16 * 16;
    return rows * digit_groups(w) + rows * 32 + rows * w->k / 4;
}

/* out[j * out_stride + n - first] = W[n] . x[j] for rows [first, last); `next`: codes of as many rows needed after. */
static inline void digit_blocks(const Matrix *w, int64_t first, int64_t last, const uint8_t *packed, int64_t columns,
                                int digits, float *out, int64_t out_stride, const void *next, float *space) {
    const int64_t groups = digit_groups(w), width = digit_block_rows(digits), bytes = digit_block_bytes(w);
    const int64_t rows = (last - first + 15) / 16 * 16, pairs = (columns + 2 * width - 1) / (2 * width);
    float *sum = space, *scale = sum + rows * 32;
    uint8_t *panel = (uint8_t *)(scale + rows * groups);
    CallAhead ahead = {next, (last - first) * w->row_bytes / 64, 0};
    ahead.lines_a_group = ahead.lines / (pairs * groups * rows / 16) + 1;
    digit_panel(w, first, last, panel);
    for (int64_t i = 0; i < rows; i++)
        for (int64_t g = 0; g < groups; g++)
            scale[i * groups + g] = first + i < last ? scale_at(w, first_scale(w, first + i) + g) : 0;
    amx_begin();
    for (int64_t j = 0; j < columns; j += 2 * width) {
        const uint8_t *x0 = packed + j / width * bytes, *x1 = columns - j > width ? x0 + bytes : x0;
        digit_pair(w, panel, rows, scale, x0, x1, sum, &ahead);
        for (int64_t r = 0; r < rows; r += 16)
            for (int64_t half = 0; half < 2 && j + half * width < columns; half++) {
                const int64_t at = j + half * width, count = last - first - r;
                join_digits(sum + 32 * r + 256 * half,
                            (const float *)((half ? x1 : x0) + 16 * w->k + 64 * groups), digits,
                            columns - at < width ? columns - at : width,
                            count >= 16 ? 0xffff : (__mmask16)((1u << count) - 1), out + at * out_stride + r,
                            out_stride);
            }
    }
    amx_end();
}

#endif
#endif
