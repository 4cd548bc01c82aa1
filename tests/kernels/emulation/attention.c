/* bf16_attention.h for ctypes: mla_prefill with one bf16 term, with AMX tiles in plain C. */
#include "emulated_tiles.h"
#include "bf16_attention.h"

/* sizes: queries, keys, heads, nope, rope, value_dim, keys that query 0 sees; other arrays as in mla_prefill. */
void attention(const int64_t *sizes, const float *query, const float *kv, const float *k_pe, float scale,
               float *running_max, float *running_sum, float *out) {
    const int64_t rows = sizes[0], n_keys = sizes[1], heads = sizes[2], nope = sizes[3], rope = sizes[4], value_dim = sizes[5];
    const int64_t ahead = sizes[6], size = nope + rope, step = heads * (nope + value_dim);
    PackedKeys packed = {.width = bf16_width(size + rope), .value_width = bf16_width(value_dim)};
    packed.keys = aligned_alloc(64, 2 * ATTENTION_PACK * packed.width);
    packed.values = aligned_alloc(64, 2 * ATTENTION_PACK * packed.value_width);
    float *space = aligned_alloc(64, (bf16_attention_space(packed.width, packed.value_width) + 15) / 16 * 64);
    for (int64_t head = 0; head < heads; head++)
        for (int64_t first = 0; first < n_keys && first < ahead + rows - 1; first += ATTENTION_PACK) {
            const float *row = kv + first * step + head * (nope + value_dim);
            packed.n_keys = n_keys - first < ATTENTION_PACK ? n_keys - first : ATTENTION_PACK;
            packed.padded_keys = bf16_width(packed.n_keys);
            bf16_pack_keys(row, step, nope, k_pe + first * rope, rope, &packed, space);
            bf16_pack_values(row + nope, step, value_dim, &packed);
            for (int64_t t = first < ahead ? 0 : first - ahead + 1; t < rows; t += ATTENTION_QUERIES) {
                const int64_t at = t * heads + head;
                Queries queries = {query + at * size, running_max + at, running_sum + at, out + at * value_dim,
                                   heads * size, heads, heads * value_dim, size, rope, value_dim,
                                   rows - t < ATTENTION_QUERIES ? rows - t : ATTENTION_QUERIES, 0, ahead + t - first, scale};
                bf16_attend(&queries, &packed, space);
            }
        }
    free(packed.keys);
    free(packed.values);
    free(space);
}
