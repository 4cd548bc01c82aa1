/* The tile instructions of bf16.h, fp8_rows.h, digit_tiles.h and bf16_attention.h in plain C. Included by immintrin.h. */
#define __AMX_TILE__ 1
#define __AMX_BF16__ 1
#define __AMX_INT8__ 1
#include <stdint.h>
#include <string.h>

static __thread uint8_t tile_memory[8][16][64];
static __thread uint16_t tile_row_bytes[8]; /* columns beyond are neither loaded nor stored */

static void emulated_config(const void *config) { memcpy(tile_row_bytes, (const uint8_t *)config + 16, 16); }

static float bf16_value(uint16_t bits) {
    uint32_t wide = (uint32_t)bits << 16;
    float value;
    memcpy(&value, &wide, 4);
    return value;
}

static void emulated_load(int tile, const void *base, int64_t stride) {
    memset(tile_memory[tile], 0, 1024);
    for (int row = 0; row < 16; row++)
        memcpy(tile_memory[tile][row], (const uint8_t *)base + row * stride, tile_row_bytes[tile]);
}

static void emulated_store(int tile, void *base, int64_t stride) {
    for (int row = 0; row < 16; row++) memcpy((uint8_t *)base + row * stride, tile_memory[tile][row], tile_row_bytes[tile]);
}

/* C[m][n] += A[m][2k] B[k][2n] + A[m][2k + 1] B[k][2n + 1] (Intel SDM, TDPBF16PS) */
static void emulated_dot(int c, int a, int b) {
    float *sum = (float *)tile_memory[c];
    const uint16_t *left = (const uint16_t *)tile_memory[a], *right = (const uint16_t *)tile_memory[b];
    for (int m = 0; m < 16; m++)
        for (int k = 0; k < 16; k++)
            for (int n = 0; n < 16; n++)
                for (int half = 0; half < 2; half++)
                    sum[16 * m + n] += bf16_value(left[32 * m + 2 * k + half]) * bf16_value(right[32 * k + 2 * n + half]);
}

/* C[m][n] += sum of A[m][4k + i] B[k][4n + i], i < 4, both signed (TDPBSSD) */
static void emulated_dot_bytes(int c, int a, int b) {
    int32_t *sum = (int32_t *)tile_memory[c];
    const int8_t *left = (const int8_t *)tile_memory[a];
    const int8_t *right = (const int8_t *)tile_memory[b];
    for (int m = 0; m < 16; m++)
        for (int k = 0; k < 16; k++)
            for (int n = 0; n < 16; n++)
                for (int i = 0; i < 4; i++) sum[16 * m + n] += left[64 * m + 4 * k + i] * right[64 * k + 4 * n + i];
}

#undef _tile_loadconfig
#undef _tile_release
#undef _tile_zero
#undef _tile_loadd
#undef _tile_stored
#undef _tile_dpbf16ps
#undef _tile_dpbssd
#define _tile_loadconfig emulated_config
#define _tile_release() ((void)0)
#define _tile_zero(tile) memset(tile_memory[tile], 0, 1024)
#define _tile_loadd emulated_load
#define _tile_stored emulated_store
#define _tile_dpbf16ps emulated_dot
#define _tile_dpbssd emulated_dot_bytes
