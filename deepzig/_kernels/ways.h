/* The ways of multiplying a weight with rows of activations, chosen by weight, ISA and what the caller asks for, and by the
 * number of rows only where both ways give the same bits. Included by linear and experts, which hold the loops over tasks.
 *
 *     FLOATS           fp32 products, weights decoded on the way or in blocks (blocks.h)
 *     FLOAT_LANES      the same for prompts, in registers transposed (float_lanes.h)
 *     WORD_LANES       x and weights as whole numbers of 16 bits (word_lanes.h): for fast prompts, and, x as two, for many
 *                      rows that decode
 *     WORD_ROWS_WAY    the same for few rows that decode (word_rows.h)
 *     BF16_SUMS        x as one bf16 term or three (bf16.h)
 *     FP8_ROWS_WAY     x as three bf16 terms side by side in AMX tiles, for decoding (fp8_rows.h)
 *     DIGIT_ROWS_WAY   x as digits of whole numbers, in registers (digits.h)
 *     DIGIT_TILES_WAY  the same for many rows, in AMX tiles (digit_tiles.h) or in registers transposed (digit_lanes.h)
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
#include "fp8_rows.h"
#include "word_rows.h"

/* In this order: x rows as they are, packed whatever the weight, packed for the weight. */
enum { FLOATS, FLOAT_LANES, BF16_SUMS, FP8_ROWS_WAY, DIGIT_ROWS_WAY, DIGIT_TILES_WAY, WORD_LANES, WORD_ROWS_WAY };

typedef struct {
    int kind;
    int terms; /* bf16 terms, digits or words of x */
} Way;

/* x rows packed by one task: whole blocks of every way. */
#define PACK_ROWS 16

/* x rows from which DIGIT_TILES is faster than DIGIT_ROWS, and WORD_LANES than WORD_ROWS. */
#define TILES_FROM_ROWS 5
#define WORD_LANES_FROM_ROWS 3

/* The way for w and about so many x rows; `terms` is the caller's bf16_terms: 0 for decoding, and
 * for prompts too if they are to have its bits; 1 for fast prompts, 3 for exact ones. */
INLINE Way way_for(const Matrix *w, int terms, int64_t x_rows) {
    const int bf16 = bf16_terms(w, terms);
#if defined(__AVX512VNNI__) && defined(__AVX512VBMI__)
    if (takes_digit_tiles(w) && (tiles_equal_rows(w) ? x_rows >= TILES_FROM_ROWS : terms != 0))
        return (Way){DIGIT_TILES_WAY, terms == 1 ? 2 : 3};
#endif
    if (!terms && takes_fp8_rows(w)) return (Way){FP8_ROWS_WAY, 3};
    if (takes_digits(w)) return (Way){DIGIT_ROWS_WAY, terms == 1 ? 2 : 3};
    if (!terms && takes_word_rows(w)) return (Way){x_rows >= WORD_LANES_FROM_ROWS ? WORD_LANES : WORD_ROWS_WAY, 2};
    if (bf16) return (Way){BF16_SUMS, bf16};
    if (terms == 1 && takes_words(w)) return (Way){WORD_LANES, 1};
    return (Way){terms ? FLOAT_LANES : FLOATS, 0};
}

/* Whether rows packed for one are packed for the other. */
INLINE int same_packing(Way a, const Matrix *first, Way b, const Matrix *second) {
    return a.kind == b.kind && a.terms == b.terms && first->k == second->k &&
           (a.kind < DIGIT_ROWS_WAY || (first->format == second->format && first->group_size == second->group_size));
}

/* Bytes of so many packed x rows, a multiple of 64; if `x_rows` is a multiple of PACK_ROWS also where the next begin. */
INLINE int64_t packed_bytes(Way way, const Matrix *w, int64_t x_rows) {
    switch (way.kind) {
    case BF16_SUMS: return (2 * bf16_packed_size(x_rows, w->k, way.terms) + 63) / 64 * 64;
#if defined(__AVX512VNNI__) && defined(__AVX512VBMI__)
    case DIGIT_ROWS_WAY: return x_rows * digit_row_bytes(w, way.terms);
    case DIGIT_TILES_WAY: return digit_blocks_bytes(w, x_rows, way.terms);
#endif
#if defined(__AMX_BF16__)
    case FP8_ROWS_WAY: return fp8_packed_bytes(w, x_rows);
#endif
#if HAS_WORDS
    case WORD_LANES: return x_rows * way.terms * word_row_bytes(w);
#endif
#if HAS_WORD_ROWS
    case WORD_ROWS_WAY: return x_rows * nibble_row_bytes(w);
#endif
    default: return 0;
    }
}

/* Floats of `space` that pack_rows needs. */
INLINE int64_t pack_space(Way way, const Matrix *w) { return way.kind == DIGIT_TILES_WAY ? w->k : 0; }

static inline void pack_rows(Way way, const Matrix *w, const float *const *x, int64_t x_rows, uint8_t *packed,
                             float *space) {
    switch (way.kind) {
    case BF16_SUMS: bf16_pack(x, x_rows, w->k, way.terms, (uint16_t *)packed); break;
#if defined(__AVX512VNNI__) && defined(__AVX512VBMI__)
    case DIGIT_ROWS_WAY:
        for (int64_t j = 0; j < x_rows; j++)
            pack_digit_row(w, x[j], way.terms, packed + j * digit_row_bytes(w, way.terms));
        break;
    case DIGIT_TILES_WAY: pack_digit_blocks(w, x, x_rows, way.terms, packed, (uint8_t *)space); break;
#endif
#if defined(__AMX_BF16__)
    case FP8_ROWS_WAY: pack_fp8_rows(w, x, x_rows, packed); break;
#endif
#if HAS_WORDS
    case WORD_LANES:
        for (int64_t j = 0; j < x_rows; j++, packed += way.terms * word_row_bytes(w)) {
#if HAS_WORD_ROWS
            if (way.terms == 2) pack_word_pair(w, x[j], packed);
#endif
            if (way.terms == 1) pack_words(w, x[j], packed);
        }
        break;
#endif
#if HAS_WORD_ROWS
    case WORD_ROWS_WAY:
        for (int64_t j = 0; j < x_rows; j++) pack_nibble_row(w, x[j], packed + j * nibble_row_bytes(w));
        break;
#endif
    }
}

/* Floats of `space` that multiply needs for so many weight rows. */
INLINE int64_t multiply_space(Way way, const Matrix *w, int64_t rows) {
    switch (way.kind) {
    case FLOATS: return dot_space(w);
    case FLOAT_LANES: return float_lanes_space(w);
    case BF16_SUMS: return bf16_space(w, rows);
#if defined(__AMX_BF16__)
    case FP8_ROWS_WAY: return fp8_rows_space(w);
#endif
#if defined(__AVX512VNNI__) && defined(__AVX512VBMI__)
    case DIGIT_TILES_WAY: return digit_blocks_space(w, rows);
#endif
#if HAS_WORDS
    case WORD_LANES: return sizeof(WordSpace) / sizeof(float);
#endif
    default: return 0;
    }
}

/* Weight rows that a task takes in multiples of. */
INLINE int64_t row_step(Way way) {
    switch (way.kind) {
    case FLOATS: return BLOCK_ROWS;
    case FLOAT_LANES:
    case WORD_LANES: return 2 * LANES;
    case BF16_SUMS: return BF16_ROWS;
    case FP8_ROWS_WAY:
    case DIGIT_TILES_WAY: return 32; /* two tiles, or lanes of two vectors */
    default: return 8;               /* two tiles of registers */
    }
}

/* Whether weight rows become a panel that is used for all x rows, so that it has to fit a cache. */
INLINE int has_panel(Way way) {
    return way.kind != FLOATS && way.kind != FP8_ROWS_WAY && way.kind != DIGIT_ROWS_WAY && way.kind != WORD_ROWS_WAY;
}

/* Whether x rows are packed. */
INLINE int packs(Way way) { return way.kind > FLOAT_LANES; }

/* Whether x rows that are not packed are to be copied, copy_step apart and with zeros behind them: rows that are not even
 * need the zeros, many the distance. */
INLINE int wants_copies(Way way, const Matrix *w, int64_t x_rows) {
    return !packs(way) && (!is_even(w) || x_rows > TILE_X_ROWS);
}

/* out[j * out_stride + n - first] = W[n] . x[j] for rows [first, last). x: rows of floats; packed: the same rows packed,
 * for ways that pack. next: codes of the weight rows that this thread will need after. */
static inline void multiply(Way way, const Matrix *w, int64_t first, int64_t last, const float *const *x,
                            const uint8_t *packed, int64_t x_rows, float *out, int64_t out_stride, const void *next,
                            float *space) {
    switch (way.kind) {
    case FLOATS: dot_block(w, first, last, x, x_rows, out, out_stride, space); break;
    case FLOAT_LANES: float_lanes(w, first, last, x, x_rows, out, out_stride, (FloatSpace *)space); break;
    case BF16_SUMS:
        bf16_block(w, first, last, (const uint16_t *)packed, x_rows, way.terms, out, out_stride, next, space);
        break;
#if defined(__AVX512VNNI__) && defined(__AVX512VBMI__)
    case DIGIT_ROWS_WAY: digit_rows(w, first, last, packed, x_rows, way.terms, out, out_stride); break;
    case DIGIT_TILES_WAY:
        digit_blocks(w, first, last, packed, x_rows, way.terms, out, out_stride, next, space);
        break;
#endif
#if defined(__AMX_BF16__)
    case FP8_ROWS_WAY: fp8_rows(w, first, last, packed, x_rows, out, out_stride, space); break;
#endif
#if HAS_WORDS
    case WORD_LANES: word_lanes(w, first, last, packed, x_rows, way.terms, out, out_stride, (WordSpace *)space); break;
#endif
#if HAS_WORD_ROWS
    case WORD_ROWS_WAY: word_rows(w, first, last, packed, x_rows, out, out_stride); break;
#endif
    }
}

#endif
