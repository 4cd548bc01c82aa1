/* Tiles of AMX and what all ways of using them share. Included by bf16.h and digit_tiles.h. What multiplies tiles there are
 * macros, since the numbers of tiles must be constants in the source.
 */
#ifndef DEEPZIG_AMX_H
#define DEEPZIG_AMX_H

#include "tiles.h"

#if defined(__AMX_TILE__)

/* A whole tile of bytes (16, 64), or of bf16 (16, 32). */
#define TILE_BYTES 1024
#define TILE_BF16 512

typedef struct {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
} TileConfig;

static const TileConfig whole_tiles = {
    .palette = 1, .row_bytes = {64, 64, 64, 64, 64, 64, 64, 64}, .rows = {16, 16, 16, 16, 16, 16, 16, 16}};

INLINE void amx_begin(const TileConfig *config) {
    __asm__ volatile("" ::: "memory"); /* tile loads do not tell the compiler what they read: finish all stores first */
    _tile_loadconfig(config);
}

INLINE void amx_end(void) { _tile_release(); }

/* The scales of row n for each turn of so many columns, as floats: a turn is a group, or a part of the only one. */
INLINE void row_scales(const Matrix *w, int64_t n, int64_t turn_columns, float *out) {
    const int64_t at = first_scale(w, n), turns = parts_of(w->k, turn_columns);
    if (turn_columns < w->group_size) {
        for (int64_t t = 0; t < turns; t++) out[t] = scale_at(w, at);
        return;
    }
    for (int64_t t = 0; t < turns; t += 16) {
        const __mmask16 some = turns - t >= 16 ? 0xffff : (__mmask16)((1u << (turns - t)) - 1);
        __m512 value = _mm512_set1_ps(1.0f);
        if (w->scale_format == SCALE_F32) {
            value = _mm512_maskz_loadu_ps(some, (const float *)w->scale + at + t);
        } else if (w->scale_format) {
            __m256i half = _mm256_maskz_loadu_epi16(some, (const uint16_t *)w->scale + at + t);
            value = w->scale_format == SCALE_F16
                        ? _mm512_cvtph_ps(half)
                        : _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
        }
        _mm512_mask_storeu_ps(out + t, some, value);
    }
}

/* out[j * out_stride + i] = sum[16 i + j] for i < rows, j < x_rows, both at most 16. */
INLINE void write_square(const float *sum, int64_t rows, int64_t x_rows, float *out, int64_t out_stride) {
    const __mmask16 valid = rows >= 16 ? 0xffff : (__mmask16)((1u << rows) - 1);
    vfloat row[16], column[16];
    for (int i = 0; i < 16; i++) row[i] = vload(sum + 16 * i);
    transpose(row, column);
    for (int64_t j = 0; j < x_rows; j++) _mm512_mask_storeu_ps(out + j * out_stride, valid, (__m512)column[j]);
}

/* What to prefetch while other memory is multiplied: the weights that come next. */
typedef struct {
    const uint8_t *next;
    int64_t lines, at_once;
} Prefetch;

INLINE void prefetch_some(Prefetch *ahead) {
    for (int64_t i = 0; i < ahead->at_once && ahead->lines > 0; i++, ahead->lines--, ahead->next += 64)
        prefetch(ahead->next);
}

#endif
#endif
