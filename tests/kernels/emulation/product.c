/* ways.h for ctypes: out (M, N) = x (M, K) times W (N, K), with AMX tiles in plain C. Returns the way, or 0 for FLOATS. */
#include "emulated_tiles.h"
#include "ways.h"

const int bf16_sums = BF16_SUMS, fp8_rows_way = FP8_ROWS_WAY, digit_rows_way = DIGIT_ROWS_WAY;
const int digit_tiles_way = DIGIT_TILES_WAY;

int product(const Matrix *w, const float *x, int64_t columns, int wanted, float *out) {
    const Way way = way_for(w, wanted, columns);
    if (way.kind == FLOATS) return 0;
    const float **rows = malloc(columns * sizeof *rows);
    for (int64_t j = 0; j < columns; j++) rows[j] = x + j * w->k;
    uint8_t *packed = aligned_alloc(64, packed_bytes(way, w, columns));
    float *space = aligned_alloc(64, (multiply_space(way, w, w->n) + pack_space(way, w) + 16) / 16 * 64);
    pack_rows(way, w, rows, columns, packed, space);
    multiply(way, w, 0, w->n, rows, packed, columns, out, w->n, (const void *)w->codes, space);
    free(rows);
    free(packed);
    free(space);
    return way.kind;
}
