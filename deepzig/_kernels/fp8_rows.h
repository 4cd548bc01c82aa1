/* fp8 weights against few rows of x, in AMX tiles: decoding. Included by ways.h; knows matrices and float rows.
 *
 * Weight rows become bf16 tiles A, 16 rows x 32 columns of K, by looking both bytes of a number up; no rounding. Each x row
 * takes four columns of a tile B: three bf16 terms, which hold all bits of a float, and a zero, which keeps rows apart. So
 * up to eight x rows cost what one does, a pass over the weights is bound by memory (decoding to float was not: log.md),
 * and since columns of a product do not meet, a row does not depend on the rows multiplied with it. Sums of a turn of K
 * are scaled and added in float, in order; then the terms', the highest first.
 */
#ifndef DEEPZIG_FP8_ROWS_H
#define DEEPZIG_FP8_ROWS_H

#include "bf16.h"

#define FP8_STEP 64  /* codes of a row that one look-up takes */
#define FP8_BLOCK 4  /* x rows of a tile */
#define FP8_BLOCKS 2 /* tiles of x rows that meet the weights at once */
#define FP8_ROWS 32

/* Whether they can be multiplied so: a step of K has one scale. */
INLINE int takes_fp8_rows(const Matrix *w) {
#if HAS_BF16_TILES
    return w->format == FP8 && w->k % FP8_STEP == 0 && (w->group_size >= w->k || w->group_size % FP8_STEP == 0);
#else
    (void)w;
    return 0;
#endif
}

#if HAS_BF16_TILES

INLINE int64_t fp8_turn(const Matrix *w) { return w->group_size < w->k ? w->group_size : BF16_TURN; }

/* Bytes of packed x rows: for each half step of K a tile (16 pairs of columns, 4 for each x row, 2) of bf16. */
INLINE int64_t fp8_packed_bytes(const Matrix *w, int64_t x_rows) { return 8 * w->k * x_rows; }

/* Blocks of FP8_BLOCK rows, the last with what is left. The two tiles of a step hold its columns in the order in which
 * unpacking bytes leaves them: eight for the first, eight for the second, and so on. */
static inline void pack_fp8_rows(const Matrix *w, const float *const *x, int64_t x_rows, uint8_t *packed) {
    for (int64_t j = 0; j < x_rows; j++) {
        const int64_t block = j / FP8_BLOCK * FP8_BLOCK;
        const int64_t count = least(x_rows - block, FP8_BLOCK);
        uint8_t *to = packed + fp8_packed_bytes(w, block) + 16 * (j - block);
        for (int64_t tile = 0; tile < w->k / FP8_STEP * 2; tile++, to += 16 * 16 * count) {
            const float *from = x[j] + tile / 2 * FP8_STEP + tile % 2 * 8;
            uint32_t term[3][16]; /* pairs */
            for (int i = 0; i < 4; i += 2) { /* runs of eight, 16 apart */
                const float *low = from + 16 * i, *high = low + 16;
                __m512 rest = _mm512_insertf32x8(_mm512_castps256_ps512(_mm256_loadu_ps(low)), _mm256_loadu_ps(high), 1);
                for (int t = 0; t < 3; t++) {
                    float value[16];
                    _mm512_storeu_ps(value, rest);
                    _mm256_storeu_si256((__m256i *)(term[t] + 4 * i), bf16_round(value, 16, &rest));
                }
            }
            for (int pair = 0; pair < 16; pair++) {
                uint32_t columns[4] = {term[0][pair], term[1][pair], term[2][pair], 0};
                memcpy(to + 16 * count * pair, columns, 16);
            }
        }
    }
}

/* A step of 16 rows as two tiles (2 halves of K, 16, 64), by looking codes up. */
static void fp8_look_up(const uint8_t *const *row, int64_t k, uint8_t *tiles) {
    for (int i = 0; i < 16; i++) {
        __m512i half[2];
        fp8_to_bf16(_mm512_loadu_si512(row[i] + k), half, half + 1);
        _mm512_store_si512(tiles + 64 * i, half[0]);
        _mm512_store_si512(tiles + TILE_BYTES + 64 * i, half[1]);
    }
}

/* The same, but faster; and the lines that lie `ahead` are prefetched. A code s eeee mmm has the high byte s, eee + 60 and
 * the low byte e mmm 0000, unless eeee is 0 or the code NaN: such a step, one in nine of normal weights, is looked up. */
INLINE void fp8_unpack(const uint8_t *const *row, int64_t k, int64_t ahead, uint8_t *tiles) {
    const __m512i bytes = _mm512_broadcast_i32x4(_mm_setr_epi8(60, 61, 62, 63, 64, 65, 66, 67, -68, -67, -66, -65, -64,
                                                               -63, -62, -61));
    const __m512i nibble = _mm512_set1_epi8(15), upper = _mm512_set1_epi8((char)0xf0);
    const __m512i magnitude = _mm512_set1_epi8(0x7f);
    __m512i smallest = magnitude, most = _mm512_setzero_si512();
    for (int i = 0; i < 16; i++) {
        const __m512i code = _mm512_loadu_si512(row[i] + k);
        prefetch(row[i] + k + ahead);
        __m512i low = _mm512_and_si512(_mm512_slli_epi16(code, 4), upper);
        __m512i high = _mm512_shuffle_epi8(bytes, _mm512_and_si512(_mm512_srli_epi16(code, 4), nibble));
        __m512i size = _mm512_and_si512(code, magnitude);
        smallest = _mm512_min_epu8(smallest, size);
        most = _mm512_max_epu8(most, size);
        _mm512_store_si512(tiles + 64 * i, _mm512_unpacklo_epi8(low, high));
        _mm512_store_si512(tiles + TILE_BYTES + 64 * i, _mm512_unpackhi_epi8(low, high));
    }
    if (__builtin_expect(_mm512_cmplt_epu8_mask(smallest, _mm512_set1_epi8(8)) |
                             _mm512_cmpeq_epi8_mask(most, magnitude), 0) != 0)
        fp8_look_up(row, k, tiles);
}

/* x rows that meet the weights at once. */
typedef struct {
    const uint8_t *packed[FP8_BLOCKS];
    int64_t count[FP8_BLOCKS];
} Fp8XRows;

INLINE void fp8_begin(const Fp8XRows *x) {
    TileConfig config = whole_tiles;
    config.row_bytes[0] = config.row_bytes[1] = config.row_bytes[6] = (uint16_t)(16 * x->count[0]);
    if (x->count[1]) config.row_bytes[2] = config.row_bytes[3] = config.row_bytes[7] = (uint16_t)(16 * x->count[1]);
    amx_begin(&config);
}

/* Tiles C and D += a step of 16 weight rows times the first and the second block of x rows. */
#define FP8_PRODUCTS(C, D)                                                                                              \
    do {                                                                                                               \
        for (int half = 0; half < 2; half++) {                                                                         \
            _tile_loadd(4, tiles + TILE_BYTES * half, 64);                                                             \
            _tile_loadd(6, x->packed[0] + (2 * step + half) * 16 * first, first);                                      \
            _tile_dpbf16ps(C, 4, 6);                                                                                   \
            if (blocks > 1) {                                                                                          \
                _tile_loadd(7, x->packed[1] + (2 * step + half) * 16 * second, second);                                \
                _tile_dpbf16ps(D, 4, 7);                                                                               \
            }                                                                                                          \
        }                                                                                                              \
    } while (0)

INLINE void fp8_multiply(int blocks, int64_t group, const uint8_t *tiles, const Fp8XRows *x, int64_t step) {
    const int64_t first = 16 * x->count[0], second = 16 * x->count[1];
    __asm__ volatile("" ::: "memory");
    if (group) FP8_PRODUCTS(1, 3);
    else FP8_PRODUCTS(0, 2);
}

/* product (blocks, FP8_ROWS, 4 count): what tiles hold, without gaps; they begin anew. */
INLINE void fp8_take(int blocks, const Fp8XRows *x, float (*product)[FP8_ROWS * 16]) {
    const int64_t first = x->count[0], second = x->count[1];
    _tile_stored(0, product[0], 16 * first);
    _tile_stored(1, product[0] + 64 * first, 16 * first);
    _tile_zero(0);
    _tile_zero(1);
    if (blocks > 1) {
        _tile_stored(2, product[1], 16 * second);
        _tile_stored(3, product[1] + 64 * second, 16 * second);
        _tile_zero(2);
        _tile_zero(3);
    }
    __asm__ volatile("" ::: "memory");
}

/* sum += scale * product. The rows' scales are scale_stride apart; 0: they share one. */
INLINE void fp8_collect(int blocks, const Fp8XRows *x, float (*sum)[FP8_ROWS * 16], float (*product)[FP8_ROWS * 16],
                        const float *scale, int64_t scale_stride) {
    for (int b = 0; b < blocks; b++) {
        const int64_t lanes = 4 * x->count[b];
        if (scale_stride == 0) {
            for (int64_t i = 0; i < FP8_ROWS * lanes; i += LANES)
                vstore(sum[b] + i, vload(sum[b] + i) + vset(*scale) * vload(product[b] + i));
        } else {
            for (int64_t i = 0; i < FP8_ROWS; i++)
                for (int64_t c = 0; c < lanes; c++)
                    sum[b][i * lanes + c] += scale[i * scale_stride] * product[b][i * lanes + c];
        }
    }
}

/* Floats of `space` that fp8_rows needs: scales of FP8_ROWS rows. */
INLINE int64_t fp8_rows_space(const Matrix *w) { return FP8_ROWS * parts_of(w->k, fp8_turn(w)); }

/* Scales of rows [n, n + FP8_ROWS) for each turn; returns how far those of one row lie from the next's: 0 if they share. */
INLINE int64_t fp8_scales(const Matrix *w, int64_t n, int64_t last, float *scale) {
    const int64_t turn = fp8_turn(w), turns = parts_of(w->k, turn);
    const int64_t end = least(n + FP8_ROWS, last);
    const int64_t stride = n / w->block_rows == (end - 1) / w->block_rows ? 0 : turns;
    for (int64_t i = 0; i < (stride ? FP8_ROWS : 1); i++) row_scales(w, n + i < end ? n + i : n, turn, scale + i * turns);
    return stride;
}

INLINE void fp8_rows_of(int blocks, const Matrix *w, int64_t first, int64_t last, const Fp8XRows *x, float *out,
                        int64_t out_stride, float *scale) {
    _Alignas(64) uint8_t tiles[2][2 * TILE_BYTES]; /* together 4 KB: loads of one never look like stores to the other */
    _Alignas(64) float product[2][FP8_BLOCKS][FP8_ROWS * 16], sum[FP8_BLOCKS][FP8_ROWS * 16];
    const int64_t steps = w->k / FP8_STEP, turn = fp8_turn(w) / FP8_STEP, ahead = FP8_ROWS * w->row_bytes;
    fp8_begin(x);
    for (int64_t n = first; n < last; n += FP8_ROWS, out += FP8_ROWS) {
        const int64_t rows = least(last - n, FP8_ROWS), scale_stride = fp8_scales(w, n, last, scale);
        const uint8_t *row[FP8_ROWS]; /* those beyond the last stand for nothing */
        for (int64_t i = 0; i < FP8_ROWS; i++)
            row[i] = codes_of(w, n + (i < rows ? i : 0));
        int64_t turns = 0;
        for (int b = 0; b < blocks; b++) memset(sum[b], 0, (size_t)(FP8_ROWS * 16 * x->count[b]));
        fp8_unpack(row, 0, ahead, tiles[0]);
        fp8_take(blocks, x, product[1]);
        for (int64_t s = 0; s < steps; s++) {
            fp8_unpack(row + 16, s * FP8_STEP, ahead, tiles[1]);
            fp8_multiply(blocks, 0, tiles[0], x, s);
            if (s + 1 < steps) fp8_unpack(row, (s + 1) * FP8_STEP, ahead, tiles[0]);
            fp8_multiply(blocks, 1, tiles[1], x, s);
            if ((s + 1) % turn && s + 1 < steps) continue;
            fp8_take(blocks, x, product[turns & 1]);
            if (turns) fp8_collect(blocks, x, sum, product[(turns - 1) & 1], scale + turns - 1, scale_stride);
            turns++;
        }
        fp8_collect(blocks, x, sum, product[(turns - 1) & 1], scale + turns - 1, scale_stride);
        for (int b = 0; b < blocks; b++)
            for (int64_t j = 0; j < x->count[b]; j++)
                for (int64_t i = 0; i < rows; i++) {
                    const float *term = sum[b] + 4 * (x->count[b] * i + j);
                    out[(FP8_BLOCK * b + j) * out_stride + i] = term[0] + (term[1] + term[2]);
                }
    }
    amx_end();
}

/* out[j * out_stride + n - first] = W[n] . x[j] for rows [first, last) and packed rows x. */
static inline void fp8_rows(const Matrix *w, int64_t first, int64_t last, const uint8_t *packed, int64_t x_rows,
                            float *out, int64_t out_stride, float *space) {
    for (int64_t j = 0; j < x_rows; j += FP8_BLOCKS * FP8_BLOCK, out += FP8_BLOCKS * FP8_BLOCK * out_stride) {
        Fp8XRows x;
        for (int64_t b = 0; b < FP8_BLOCKS; b++) {
            const int64_t at = j + b * FP8_BLOCK, left = x_rows - at;
            x.packed[b] = packed + fp8_packed_bytes(w, at);
            x.count[b] = left >= FP8_BLOCK ? FP8_BLOCK : left > 0 ? left : 0;
        }
        if (x.count[1]) fp8_rows_of(2, w, first, last, &x, out, out_stride, space);
        else fp8_rows_of(1, w, first, last, &x, out, out_stride, space);
    }
}

#endif
#endif
