/* attention.h for ctypes: mla_prefill with one bf16 term, with AMX tiles in plain C. */
#include "emulated_tiles.h"
#include "attention.h"

/* sizes: queries, keys, heads, nope, rope, value_dim, keys that query 0 sees; other arrays as in mla_prefill. */
void attention(const int64_t *sizes, const float *query, const float *kv, const float *k_pe, float scale,
               float *running_max, float *running_sum, float *out) {
    const int64_t rows = sizes[0], n_keys = sizes[1], heads = sizes[2], nope = sizes[3], rope = sizes[4];
    const int64_t value_dim = sizes[5], ahead = sizes[6], size = nope + rope, step = heads * (nope + value_dim);
    float *space = aligned_alloc(64, (attention_space(1, nope, rope, value_dim) + 15) / 16 * 64);
    PackedKeys packed = room_for_keys(1, nope, rope, value_dim, space);
    for (int64_t head = 0; head < heads; head++)
        for (int64_t first = 0; first < n_keys && first < ahead + rows - 1; first += packed.most_keys) {
            pack_keys(&packed, kv + first * step + head * (nope + value_dim), step, nope, k_pe + first * rope, rope,
                      value_dim, n_keys - first < packed.most_keys ? n_keys - first : packed.most_keys);
            for (int64_t t = first < ahead ? 0 : first - ahead + 1; t < rows; t += ATTENTION_QUERIES) {
                const int64_t at = t * heads + head, count = rows - t < ATTENTION_QUERIES ? rows - t : ATTENTION_QUERIES;
                Queries queries = {query + at * size, running_max + at, running_sum + at, out + at * value_dim,
                                   heads * size, heads, heads * value_dim, size, rope, value_dim, count, 0,
                                   ahead + t - first, scale};
                attend(&queries, &packed);
            }
        }
    free(space);
}
