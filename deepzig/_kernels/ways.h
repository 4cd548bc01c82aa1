/* The ways of multiplying a weight with rows of activations, chosen by weight, ISA and what the caller asks for, and by the
 * number of rows only where both ways give the same bits. Included by linear and experts, which hold the loops over tasks.
 *
 *     WAY_FLOATS       fp32 products, weights decoded on the way or in blocks (blocks.h)
 *     WAY_FLOAT_LANES  the same for prompts, in registers transposed (float_lanes.h)
 *     WAY_FP8_FLOATS   those of WAY_FLOATS with fp8 as bits of floats, 2^120 too small, and x as much too large (fp8_floats.h)
 *     WAY_WORD_LANES   x and weights as whole numbers of 16 bits, for fast prompts (word_lanes.h)
 *     WAY_NIBBLE_ROWS  x as three digits of 8 bits, for decoding int4 (nibble_rows.h)
 *     WAY_BF16_SUMS    x as one bf16 term or three (bf16.h)
 *     WAY_FP8_ROWS     x as three bf16 terms side by side in AMX tiles, for decoding (fp8_rows.h)
 *     WAY_DIGIT_ROWS   x as digits of whole numbers, in registers (digits.h)
 *     WAY_DIGIT_TILES  the same for many rows, in AMX tiles (digit_tiles.h) or in registers transposed (digit_lanes.h)
 *
 * All but the first two multiply x rows that were packed before. A "turn" in their files is a run of columns whose products
 * are summed before a scale multiplies them.
 */
#ifndef DEEPZIG_WAYS_H
#define DEEPZIG_WAYS_H

#include "blocks.h"
#include "digit_lanes.h"
#include "digit_tiles.h"
#include "float_lanes.h"
#include "fp8_floats.h"
#include "fp8_rows.h"
#include "nibble_rows.h"

/* In this order: x rows as they are, packed whatever the weight, packed for the weight. */
enum {
    WAY_FLOATS, WAY_FLOAT_LANES, WAY_FP8_FLOATS, WAY_BF16_SUMS, WAY_FP8_ROWS, WAY_DIGIT_ROWS, WAY_DIGIT_TILES,
    WAY_WORD_LANES, WAY_NIBBLE_ROWS
};

typedef struct {
    int kind;
    int parts; /* numbers that an x is split into: bf16 terms or digits */
} Way;

/* x rows packed by one task: whole blocks of every way. */
#define PACK_X_ROWS 16

/* Weights of a panel that is used many times. */
#define PANEL_VALUES (128 << 10)

#define DIGIT_TILES_FROM 5 /* x rows from which WAY_DIGIT_TILES is faster than WAY_DIGIT_ROWS */

/* The way for w and about so many x rows. DECODING is asked for of prompts too if they are to have its bits. */
INLINE Way way_for(const Matrix *w, int arithmetic, int64_t x_rows) {
    const int terms = bf16_terms(w, arithmetic), digits = arithmetic == FAST ? 2 : 3;
#if HAS_DIGITS
    if (takes_digit_tiles(w) && (tiles_equal_rows(w) ? x_rows >= DIGIT_TILES_FROM : arithmetic != DECODING))
        return (Way){WAY_DIGIT_TILES, digits};
#endif
    if (arithmetic == DECODING && takes_fp8_rows(w)) return (Way){WAY_FP8_ROWS, 3};
    if (takes_digits(w)) return (Way){WAY_DIGIT_ROWS, digits};
    if (arithmetic == DECODING && takes_nibble_rows(w)) return (Way){WAY_NIBBLE_ROWS, NIBBLE_DIGITS};
    if (terms) return (Way){WAY_BF16_SUMS, terms};
    if (arithmetic == DECODING && takes_fp8_floats(w)) return (Way){WAY_FP8_FLOATS, 0};
    if (arithmetic == FAST && takes_words(w)) return (Way){WAY_WORD_LANES, 1};
    return (Way){arithmetic == DECODING ? WAY_FLOATS : WAY_FLOAT_LANES, 0};
}

/* Whether rows packed for one are packed for the other. */
INLINE int same_packing(Way a, const Matrix *first, Way b, const Matrix *second) {
    return a.kind == b.kind && a.parts == b.parts && first->k == second->k &&
           (a.kind < WAY_DIGIT_ROWS || (first->format == second->format && first->group_size == second->group_size));
}

/* Bytes of so many packed x rows, a multiple of 64; if `x_rows` is a multiple of PACK_X_ROWS also where the next begin. */
INLINE int64_t packed_bytes(Way way, const Matrix *w, int64_t x_rows) {
    switch (way.kind) {
#if HAS_FP8_FLOATS
    case WAY_FP8_FLOATS: return x_rows * fp8_float_row_bytes(w);
#endif
#if HAS_DIGITS
    case WAY_DIGIT_ROWS: return x_rows * digit_row_bytes(w, way.parts);
    case WAY_DIGIT_TILES: return digit_blocks_bytes(w, x_rows, way.parts);
#endif
#if HAS_BF16_TILES
    case WAY_BF16_SUMS: return round_up(2 * bf16_packed_size(x_rows, w->k, way.parts), 64);
    case WAY_FP8_ROWS: return fp8_packed_bytes(w, x_rows);
#endif
#if HAS_WORDS
    case WAY_WORD_LANES: return x_rows * word_lane_row_bytes(w);
#endif
#if HAS_NIBBLE_ROWS
    case WAY_NIBBLE_ROWS: return x_rows * nibble_row_bytes(w);
#endif
    default: return 0;
    }
}

/* Floats of `space` that pack_rows needs. */
INLINE int64_t pack_space(Way way, const Matrix *w) { return way.kind == WAY_DIGIT_TILES ? w->k : 0; }

static inline void pack_rows(Way way, const Matrix *w, const float *const *x, int64_t x_rows, uint8_t *packed,
                             float *space) {
    switch (way.kind) {
#if HAS_FP8_FLOATS
    case WAY_FP8_FLOATS:
        for (int64_t j = 0; j < x_rows; j++) pack_fp8_float_row(w, x[j], (float *)(packed + j * fp8_float_row_bytes(w)));
        break;
#endif
#if HAS_DIGITS
    case WAY_DIGIT_ROWS:
        for (int64_t j = 0; j < x_rows; j++)
            pack_digit_row(w, x[j], way.parts, packed + j * digit_row_bytes(w, way.parts));
        break;
    case WAY_DIGIT_TILES: pack_digit_blocks(w, x, x_rows, way.parts, packed, (uint8_t *)space); break;
#endif
#if HAS_BF16_TILES
    case WAY_BF16_SUMS: bf16_pack(x, x_rows, w->k, way.parts, (uint16_t *)packed); break;
    case WAY_FP8_ROWS: pack_fp8_rows(w, x, x_rows, packed); break;
#endif
#if HAS_WORDS
    case WAY_WORD_LANES:
        for (int64_t j = 0; j < x_rows; j++) pack_words(w, x[j], packed + j * word_lane_row_bytes(w));
        break;
#endif
#if HAS_NIBBLE_ROWS
    case WAY_NIBBLE_ROWS:
        for (int64_t j = 0; j < x_rows; j++) pack_nibble_row(w, x[j], packed + j * nibble_row_bytes(w));
        break;
#endif
    }
}

/* Floats of `space` that multiply needs for so many weight rows. */
INLINE int64_t multiply_space(Way way, const Matrix *w, int64_t rows) {
    switch (way.kind) {
    case WAY_FLOATS:
    case WAY_FP8_FLOATS: return dot_space(w);
    case WAY_FLOAT_LANES: return float_lanes_space(w);
#if HAS_BF16_TILES
    case WAY_BF16_SUMS: return bf16_space(w, rows);
    case WAY_FP8_ROWS: return fp8_rows_space(w);
#endif
#if HAS_DIGITS
    case WAY_DIGIT_TILES: return digit_blocks_space(w, rows);
#endif
#if HAS_WORDS
    case WAY_WORD_LANES: return sizeof(WordLaneSpace) / sizeof(float);
#endif
    default: return 0;
    }
}

/* Weight rows that a task takes in multiples of. */
INLINE int64_t row_multiple(Way way) {
    switch (way.kind) {
    case WAY_FLOATS:
    case WAY_FP8_FLOATS: return BLOCK_ROWS;
    case WAY_FLOAT_LANES:
    case WAY_WORD_LANES: return 2 * LANES;
#if HAS_BF16_TILES
    case WAY_BF16_SUMS: return BF16_ROWS;
#endif
    case WAY_FP8_ROWS:
    case WAY_DIGIT_TILES: return 32; /* two tiles, or lanes of two vectors */
    default: return 8;               /* two tiles of registers */
    }
}

/* Whether weights are decoded for a few rows of floats at a time, so that those rows decide what stays in a cache. */
INLINE int takes_floats(Way way) { return way.kind == WAY_FLOATS || way.kind == WAY_FP8_FLOATS; }

/* Whether weight rows become a panel that is used for all x rows, so that it has to fit a cache. */
INLINE int has_panel(Way way) {
    return !takes_floats(way) && way.kind != WAY_FP8_ROWS && way.kind != WAY_DIGIT_ROWS && way.kind != WAY_NIBBLE_ROWS;
}

/* Weight rows of a task that reads about so many bytes of weights once, or makes a panel of PANEL_VALUES: a multiple of what
 * the way takes at once, whatever the rest. */
INLINE int64_t weight_rows_per_task(Way way, const Matrix *w, int64_t bytes) {
    const int64_t rows = has_panel(way) ? PANEL_VALUES / w->k : bytes / w->row_bytes, at_once = row_multiple(way);
    return rows < at_once ? at_once : rows / at_once * at_once;
}

/* Whether x rows are packed. */
INLINE int packs(Way way) { return way.kind > WAY_FLOAT_LANES; }

/* Whether x rows that are not packed are to be copied, copy_stride apart and with zeros behind them: rows that do not fit
 * steps need the zeros, many the distance. */
INLINE int wants_copies(Way way, const Matrix *w, int64_t x_rows) {
    return !packs(way) && (!fits_steps(w) || x_rows > TILE_X_ROWS);
}

/* out[j * out_stride + n - first] = W[n] . x[j] for rows [first, last). x: rows of floats; packed: the same rows packed,
 * for ways that pack. next: codes of the weight rows that this thread will need after. */
static inline void multiply(Way way, const Matrix *w, int64_t first, int64_t last, const float *const *x,
                            const uint8_t *packed, int64_t x_rows, float *out, int64_t out_stride, const void *next,
                            float *space) {
    switch (way.kind) {
    case WAY_FLOATS: dot_block(w, first, last, x, x_rows, out, out_stride, space); break;
    case WAY_FLOAT_LANES: float_lanes(w, first, last, x, x_rows, out, out_stride, (FloatSpace *)space); break;
#if HAS_FP8_FLOATS
    case WAY_FP8_FLOATS: fp8_floats(w, first, last, (const float *)packed, x_rows, out, out_stride, space); break;
#endif
#if HAS_DIGITS
    case WAY_DIGIT_ROWS: digit_rows(w, first, last, packed, x_rows, way.parts, out, out_stride); break;
    case WAY_DIGIT_TILES:
        digit_blocks(w, first, last, packed, x_rows, way.parts, out, out_stride, next, space);
        break;
#endif
#if HAS_BF16_TILES
    case WAY_BF16_SUMS:
        bf16_block(w, first, last, (const uint16_t *)packed, x_rows, way.parts, out, out_stride, next, space);
        break;
    case WAY_FP8_ROWS: fp8_rows(w, first, last, packed, x_rows, out, out_stride, space); break;
#endif
#if HAS_WORDS
    case WAY_WORD_LANES:
        word_lanes(w, first, last, packed, x_rows, out, out_stride, (WordLaneSpace *)space);
        break;
#endif
#if HAS_NIBBLE_ROWS
    case WAY_NIBBLE_ROWS: nibble_rows(w, first, last, packed, x_rows, out, out_stride); break;
#endif
    }
}

#endif
