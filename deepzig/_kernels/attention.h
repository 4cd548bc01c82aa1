/* Attention of a few queries over packed keys and values of one head: scores, running softmax, weighted sums.
 *
 * Included by mla_prefill, which holds the loops over heads, queries and keys. Knows rows of floats, nothing of threads.
 * Both products, scores = queries keys^T and out = probabilities values, are of rows with panels of LANES columns, in which
 * the columns of one step of k lie side by side: no sum crosses lanes. Elements are floats, [k][column], or bf16,
 * [k / 2][column][2] (bf16_attention.h). Sums run over k in order: a row does not depend on the rows multiplied with it.
 */
#ifndef DEEPZIG_ATTENTION_H
#define DEEPZIG_ATTENTION_H

#include "bf16_attention.h"
#include "vmath.h"

/* Rows whose sums with two panels registers hold at once, in products of floats. */
#if REGISTERS == 32
#define ROWS_AT_ONCE 8
#else
#define ROWS_AT_ONCE 6
#endif
#define ATTENTION_QUERIES (4 * ROWS_AT_ONCE) /* queries that meet packed keys together; with AMX two tiles */

#define ATTENTION_KEYS 256                 /* keys whose scores exist at once */
#define SCORE_STRIDE (ATTENTION_KEYS + 16) /* from a row of scores to the next: at a power of two, few sets of L1 */
#define PROB_STRIDE (ATTENTION_KEYS + 32)  /* the same of probabilities as bf16 */

/* Keys and values of one head. What sizes are rounded up by is zero. */
typedef struct {
    int bf16;
    int64_t most_keys;           /* that there is room for */
    int64_t n_keys, padded_keys;
    int64_t width, value_width;  /* of a key (as bf16 its rotary part is there twice), of a value */
    void *keys;                  /* panels (padded_keys / LANES) of `width` steps */
    void *values;                /* panels (value_width / LANES) of padded_keys steps */
    float *space;                /* for packing and for queries */
} PackedKeys;

/* Rows of queries of one head; rows of the running softmax and of out lie in the same order. */
typedef struct {
    const float *query;                     /* (rows, size), query_stride apart */
    float *running_max, *running_sum, *out; /* (rows), running_stride apart; out (rows, value_dim), out_stride apart */
    int64_t query_stride, running_stride, out_stride, size, rope, value_dim; /* size: with the rotary part, the last `rope` */
    int64_t rows;    /* at most ATTENTION_QUERIES */
    int64_t next;    /* rows that come after these: prefetched meanwhile */
    int64_t visible; /* packed keys that row 0 sees, at least 1; row j sees j more */
    float scale;
} Queries;

/* Columns that a product takes at once. */
INLINE int64_t product_columns(int bf16) { return bf16 ? BF16_STEP : 2 * LANES; }

INLINE int64_t floats_of(int bf16, int64_t elements) { return bf16 ? elements / 2 : elements; }

INLINE int attention_in_bf16(int arithmetic) { return arithmetic == FAST && HAS_BF16_ATTENTION; }

/* Room for keys and values in `space`, which holds attention_space floats; with no space, to know how many. */
static inline PackedKeys room_for_keys(int bf16, int64_t nope, int64_t rope, int64_t value_dim, float *space) {
    PackedKeys packed = {.bf16 = bf16, .most_keys = bf16 ? 512 : 256}; /* they stay in L2 */
    packed.width = bf16 ? bf16_width(nope + 2 * rope) : nope + rope;
    packed.value_width = round_up(value_dim, product_columns(bf16));
    packed.keys = space;
    packed.values = space + floats_of(bf16, packed.most_keys * packed.width);
    packed.space = (float *)packed.values + floats_of(bf16, packed.most_keys * packed.value_width);
    return packed;
}

INLINE int64_t attention_space(int bf16, int64_t nope, int64_t rope, int64_t value_dim) {
    const PackedKeys packed = room_for_keys(bf16, nope, rope, value_dim, NULL);
    const int64_t queries = ATTENTION_QUERIES * (packed.value_width + SCORE_STRIDE + packed.width + PROB_STRIDE / 2);
    const int64_t keys = floats_of(bf16, packed.most_keys * (packed.width + packed.value_width));
    return keys + queries + bf16_pack_space(packed.width);
}

/* Keys: rows of `nope` floats, `stride` apart, each with `rope` floats of rope_rows behind it. */
static inline void float_pack_keys(const float *rows, int64_t stride, int64_t nope, const float *rope_rows, int64_t rope,
                                   int64_t n_keys, int64_t padded_keys, float *to) {
    const int64_t width = nope + rope;
    for (int64_t s = 0; s < padded_keys; s++) {
        float *column = to + s / LANES * LANES * width + s % LANES;
        for (int64_t d = 0; d < nope; d++) column[d * LANES] = s < n_keys ? rows[s * stride + d] : 0;
        for (int64_t p = 0; p < rope; p++) column[(nope + p) * LANES] = s < n_keys ? rope_rows[s * rope + p] : 0;
    }
}

/* Values: rows of value_dim floats, `stride` apart. */
static inline void float_pack_values(const float *rows, int64_t stride, int64_t value_dim, int64_t value_width,
                                     int64_t n_keys, int64_t padded_keys, float *to) {
    for (int64_t s = 0; s < n_keys; s++)
        for (int64_t v = 0; v < value_width; v += LANES) {
            const int64_t left = value_dim - v;
            const float *from = rows + s * stride + v;
            vstore(to + v * padded_keys + s * LANES,
                   left >= LANES ? vload(from) : left > 0 ? vload_part(from, left) : vset(0));
        }
}

/* The first n_keys keys of `rows` and rope_rows, and the values behind them: rows of nope + value_dim floats. */
static inline void pack_keys(PackedKeys *packed, const float *rows, int64_t stride, int64_t nope, const float *rope_rows,
                             int64_t rope, int64_t value_dim, int64_t n_keys) {
    packed->n_keys = n_keys;
    packed->padded_keys = round_up(n_keys, product_columns(packed->bf16));
    if (packed->bf16) {
        bf16_pack_keys(rows, stride, nope, rope_rows, rope, n_keys, packed->padded_keys, packed->keys, packed->space);
        bf16_pack_values(rows + nope, stride, value_dim, packed->value_width, n_keys, packed->padded_keys, packed->values);
    } else {
        float_pack_keys(rows, stride, nope, rope_rows, rope, n_keys, packed->padded_keys, packed->keys);
        float_pack_values(rows + nope, stride, value_dim, packed->value_width, n_keys, packed->padded_keys, packed->values);
    }
}

/* out (rows, 2 LANES) = a (rows, steps) times the panels b and b + panel, or, if `adds`, += that. Rows up to the next
 * multiple of ROWS_AT_ONCE are read and written. */
static inline void float_product(int adds, const float *a, int64_t a_stride, int64_t rows, const float *b, int64_t panel,
                                 int64_t steps, float *out, int64_t out_stride) {
    for (int64_t i = 0; i < rows; i += ROWS_AT_ONCE, a += ROWS_AT_ONCE * a_stride, out += ROWS_AT_ONCE * out_stride) {
        vfloat sum[ROWS_AT_ONCE][2];
        for (int j = 0; j < ROWS_AT_ONCE; j++)
            for (int c = 0; c < 2; c++) sum[j][c] = adds ? vload(out + j * out_stride + LANES * c) : vset(0);
        for (int64_t k = 0; k < steps; k++) {
            const vfloat left = vload(b + LANES * k), right = vload(b + panel + LANES * k);
            for (int j = 0; j < ROWS_AT_ONCE; j++) {
                const vfloat x = vset(a[j * a_stride + k]);
                sum[j][0] += left * x;
                sum[j][1] += right * x;
            }
        }
        for (int j = 0; j < ROWS_AT_ONCE; j++)
            for (int c = 0; c < 2; c++) vstore(out + j * out_stride + LANES * c, sum[j][c]);
    }
}

/* score (padded) becomes exp(score - the greatest so far), 0 from `visible` on. Updates the running softmax and returns
 * what earlier sums are to be multiplied with. */
INLINE float float_softmax(float *score, int64_t visible, int64_t padded, float *running_max, float *running_sum) {
    float shift;
    const float keep = move_maximum(highest_of(score, visible), running_max, &shift);
    const float sum = exp_row(score, shift, score, visible);
    memset(score + visible, 0, (size_t)(padded - visible) * 4);
    *running_sum = *running_sum * keep + sum;
    return keep;
}

INLINE void attention_product(int bf16, int adds, const void *a, int64_t a_stride, int64_t rows, const void *b,
                              int64_t panel, int64_t steps, float *out, int64_t out_stride) {
    if (bf16) bf16_product(adds, a, a_stride, rows, b, panel, steps, out, out_stride);
    else float_product(adds, a, a_stride, rows, b, panel, steps, out, out_stride);
}

INLINE void attend_as(int bf16, const Queries *q, const PackedKeys *packed) {
    const int64_t width = packed->width, value_width = packed->value_width, columns = product_columns(bf16);
    const int64_t size = bf16 ? 2 : 4, prob_stride = bf16 ? PROB_STRIDE : SCORE_STRIDE, end = q->visible + q->rows - 1;
    const int64_t more = round_up(q->rows, bf16 ? BF16_PRODUCT_ROWS : ROWS_AT_ONCE) - q->rows; /* taken by products too */
    float *sums = packed->space, *scores = sums + ATTENTION_QUERIES * value_width;
    float *queries = scores + ATTENTION_QUERIES * SCORE_STRIDE, *probs = bf16 ? queries + ATTENTION_QUERIES * width : scores;
    const char *keys = packed->keys, *values = packed->values;
    memset(sums + q->rows * value_width, 0, (size_t)(more * value_width) * 4);
    memset((char *)queries + q->rows * width * size, 0, (size_t)(more * width * size));
    for (int64_t j = 0; j < q->rows; j++) {
        const float *query = q->query + j * q->query_stride;
        if (bf16) bf16_query(query, q->size, q->rope, q->scale, width, (uint16_t *)queries + j * width);
        else for (int64_t d = 0; d < width; d++) queries[j * width + d] = query[d] * q->scale;
        memcpy(sums + j * value_width, q->out + j * q->out_stride, (size_t)q->value_dim * 4);
        memset(sums + j * value_width + q->value_dim, 0, (size_t)(value_width - q->value_dim) * 4);
    }
    for (int64_t first = 0; first < packed->n_keys && first < end; first += ATTENTION_KEYS) {
        /* keys that the last row sees */
        const int64_t most = least(least(packed->n_keys, end) - first, ATTENTION_KEYS);
        const int64_t steps = bf16 ? bf16_width(most) : most;
        for (int64_t s = 0; s < most; s += columns)
            attention_product(bf16, 0, queries, width, q->rows, keys + (first + s) * width * size, LANES * width, width,
                              scores + s, SCORE_STRIDE);
        for (int64_t j = 0; j < q->rows; j++) {
            float *score = scores + j * SCORE_STRIDE, *sum = sums + j * value_width, keep;
            float *running_max = q->running_max + j * q->running_stride, *running_sum = q->running_sum + j * q->running_stride;
            const int64_t sees = q->visible + j - first, visible = sees < 0 ? 0 : least(sees, most);
            if (first == 0 && j < q->next) {
                prefetch_range(q->query + (j + q->rows) * q->query_stride, 4 * q->size);
                prefetch_range(q->out + (j + q->rows) * q->out_stride, 4 * q->value_dim);
            }
            keep = bf16 ? bf16_softmax(score, visible, steps, running_max, running_sum, (uint16_t *)probs + j * PROB_STRIDE)
                        : float_softmax(score, visible, steps, running_max, running_sum);
            for (int64_t v = 0; keep != 1.0f && v < value_width; v += LANES) vstore(sum + v, vload(sum + v) * keep);
        }
        for (int64_t v = 0; v < value_width; v += columns)
            attention_product(bf16, 1, probs, prob_stride, q->rows, values + (v * packed->padded_keys + LANES * first) * size,
                              LANES * packed->padded_keys, steps, sums + v, value_width);
    }
    for (int64_t j = 0; j < q->rows; j++)
        memcpy(q->out + j * q->out_stride, sums + j * value_width, (size_t)q->value_dim * 4);
}

/* Continues the running softmax of q's rows with the packed keys. */
static inline void attend(const Queries *q, const PackedKeys *packed) {
    if (packed->bf16) {
        bf16_begin();
        attend_as(1, q, packed);
        bf16_end();
    } else {
        attend_as(0, q, packed);
    }
}

#endif
