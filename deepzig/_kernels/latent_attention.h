/* Attention of decoding over cached rows, which are keys and values at once. Heads are lanes: each number of a row meets all
 * heads of a task, and no sum crosses lanes.
 *
 * Included by mla_decode, which holds the loops over tasks and pages. Knows rows of floats, nothing of pages or threads. The
 * sums of a head have one order, whichever heads are beside it.
 */
#ifndef DEEPZIG_LATENT_ATTENTION_H
#define DEEPZIG_LATENT_ATTENTION_H

#include "vmath.h"

#define HEAD_VECTORS 2                    /* of a task, at most */
#define MOST_HEADS (HEAD_VECTORS * LANES) /* of a task */
#define LATENT_ROWS 64                    /* of a step, at most */
#define KEY_COLUMNS 192                   /* summed before they are added to a score: their queries stay in L1 */

/* Register tiles: rows whose scores are summed at once, with one vector of heads or two; heads and vectors of values whose
 * weighted sums are. */
#if LANES == 16
#define SCORE_ROWS(vectors) ((vectors) == 1 ? 16 : 8)
#define SUM_HEADS 8
#define SUM_VECTORS 3
#elif LANES == 8
#define SCORE_ROWS(vectors) ((vectors) == 1 ? 8 : 6)
#define SUM_HEADS 4
#define SUM_VECTORS 3
#else
#define SCORE_ROWS(vectors) (REGISTERS / ((vectors) == 1 ? 2 : 4))
#define SUM_HEADS 4
#define SUM_VECTORS (REGISTERS / 8)
#endif
_Static_assert(SUM_HEADS <= LANES, "a task has LANES heads, or twice as many");

/* The heads of one task: vectors * LANES, of which those beyond the model's have queries of zeros. */
typedef struct {
    int64_t vectors;
    int64_t width, rank; /* numbers of a row: the key; the first of these, the value. Multiples of LANES */
    float *queries;      /* (width, heads), times the softmax's scale */
    float *scores;       /* (LATENT_ROWS, heads) */
    float *sums;         /* (heads, rank) */
    float *highest, *total; /* (heads): the running softmax */
} LatentHeads;

/* Floats of `space` for a task. */
INLINE int64_t latent_space(int64_t width, int64_t rank) { return MOST_HEADS * (width + rank + LATENT_ROWS + 2); }

/* n_heads rows of queries (size,), one behind the other, before the first step. */
static inline LatentHeads latent_heads(const float *query, int64_t n_heads, int64_t size, int64_t width, int64_t rank,
                                       float scale, float *space) {
    LatentHeads a = {.vectors = parts_of(n_heads, LANES), .width = width, .rank = rank, .queries = space};
    const int64_t heads = a.vectors * LANES;
    a.scores = a.queries + heads * width;
    a.sums = a.scores + heads * LATENT_ROWS;
    a.highest = a.sums + heads * rank;
    a.total = a.highest + heads;
    for (int64_t first = 0; first < heads; first += LANES)
        for (int64_t k = 0; k < width; k += LANES) {
            vfloat of_head[LANES], column[LANES];
            for (int64_t h = 0; h < LANES; h++) {
                const float *from = query + (first + h) * size + k;
                if (first + h >= n_heads || k >= size) of_head[h] = vset(0);
                else of_head[h] = k + LANES <= size ? vload(from) : vload_part(from, size - k);
            }
            transpose(of_head, column);
            for (int64_t c = 0; c < LANES; c++) vstore(a.queries + (k + c) * heads + first, column[c] * vset(scale));
        }
    memset(a.sums, 0, (size_t)(heads * rank) * 4);
    for (int64_t h = 0; h < heads; h++) a.highest[h] = -INFINITY, a.total[h] = 0;
    return a;
}

/* Scores of `count` rows, `stride` floats apart, by columns [first, last). */
INLINE void score_tile(int vectors, int count, const LatentHeads *a, const float *rows, int64_t stride, const float *next,
                       int64_t first, int64_t last, float *scores) {
    vfloat sum[16][HEAD_VECTORS];
    for (int i = 0; i < count; i++)
        for (int v = 0; v < vectors; v++) sum[i][v] = vset(0);
    for (int64_t k = first; k < last; k += 4) {
        if (k % 16 == 0)
            for (int i = 0; i < count; i++) prefetch(next + i * stride + k);
        for (int64_t c = k; c < k + 4; c++)
            for (int i = 0; i < count; i++)
                for (int v = 0; v < vectors; v++)
                    sum[i][v] += vset(rows[i * stride + c]) * vload(a->queries + (c * vectors + v) * LANES);
    }
    for (int i = 0; i < count; i++)
        for (int v = 0; v < vectors; v++) {
            float *score = scores + (i * vectors + v) * LANES;
            if (first) sum[i][v] += vload(score);
            vstore(score, sum[i][v]);
        }
}

INLINE void score_rows(int vectors, const LatentHeads *a, const float *rows, int64_t stride, int64_t count, const float *next) {
    const int64_t heads = vectors * LANES;
    for (int64_t k = 0; k < a->width; k += KEY_COLUMNS) {
        const int64_t last = least(k + KEY_COLUMNS, a->width);
        int64_t s = 0;
        for (; s + SCORE_ROWS(vectors) <= count; s += SCORE_ROWS(vectors))
            score_tile(vectors, SCORE_ROWS(vectors), a, rows + s * stride, stride, next + s * stride, k, last,
                       a->scores + s * heads);
        for (; s + 4 <= count; s += 4)
            score_tile(vectors, 4, a, rows + s * stride, stride, next + s * stride, k, last, a->scores + s * heads);
        for (; s < count; s++)
            score_tile(vectors, 1, a, rows + s * stride, stride, next + s * stride, k, last, a->scores + s * heads);
    }
}

/* Scores become exp(score - the greatest so far); sums and totals of earlier rows follow where that has risen. */
static inline void latent_softmax(const LatentHeads *a, int64_t count) {
    const int64_t heads = a->vectors * LANES;
    for (int64_t first = 0; first < heads; first += LANES) {
        const vfloat before = vload(a->highest + first);
        vfloat highest = before, total = vset(0);
        for (int64_t s = 0; s < count; s++) highest = vmaximum(vload(a->scores + s * heads + first), highest);
        for (int64_t s = 0; s < count; s++) {
            float *score = a->scores + s * heads + first;
            const vfloat e = vexp(vload(score) - highest);
            vstore(score, e);
            total += e;
        }
        const vfloat keep = vexp(before - highest);
        vstore(a->highest + first, highest);
        vstore(a->total + first, vload(a->total + first) * keep + total);
        for (int64_t h = 0; h < LANES; h++) {
            float *sum = a->sums + (first + h) * a->rank;
            for (int64_t r = 0; keep[h] != 1 && r < a->rank; r += LANES) vstore(sum + r, vload(sum + r) * vset(keep[h]));
        }
    }
}

/* Add rows, weighted by their scores, to sums of some heads, for `vectors` vectors of values. */
INLINE void sum_tile(int heads, int vectors, const LatentHeads *a, int64_t head, const float *values, int64_t stride,
                     int64_t count, float *sums) {
    vfloat sum[2 * SUM_HEADS][SUM_VECTORS];
    for (int h = 0; h < heads; h++)
        for (int v = 0; v < vectors; v++) sum[h][v] = vload(sums + h * a->rank + v * LANES);
    for (int64_t s = 0; s < count; s++) {
        const float *score = a->scores + s * a->vectors * LANES + head;
        vfloat value[SUM_VECTORS];
        for (int v = 0; v < vectors; v++) value[v] = vload(values + s * stride + v * LANES);
        for (int h = 0; h < heads; h++)
            for (int v = 0; v < vectors; v++) sum[h][v] += vset(score[h]) * value[v];
    }
    for (int h = 0; h < heads; h++)
        for (int v = 0; v < vectors; v++) vstore(sums + h * a->rank + v * LANES, sum[h][v]);
}

static inline void latent_sums(const LatentHeads *a, const float *rows, int64_t stride, int64_t count) {
    const int64_t heads = a->vectors * LANES;
    int64_t r = 0;
    for (; r + SUM_VECTORS * LANES <= a->rank; r += SUM_VECTORS * LANES)
        for (int64_t h = 0; h < heads; h += SUM_HEADS)
            sum_tile(SUM_HEADS, SUM_VECTORS, a, h, rows + r, stride, count, a->sums + h * a->rank + r);
    for (; r < a->rank; r += LANES)
        for (int64_t h = 0; h < heads; h += SUM_HEADS)
            sum_tile(SUM_HEADS, 1, a, h, rows + r, stride, count, a->sums + h * a->rank + r);
}

/* One step: count <= LATENT_ROWS rows, `stride` floats apart; `next`: rows to be prefetched meanwhile. */
static inline void attend_latent(const LatentHeads *a, const float *rows, int64_t stride, int64_t count, const float *next) {
    if (a->vectors == 1) score_rows(1, a, rows, stride, count, next);
    else score_rows(2, a, rows, stride, count, next);
    latent_softmax(a, count);
    latent_sums(a, rows, stride, count);
}

#endif
