/* Scratch memory of each thread, kept from call to call. Included by tiles.h. */
#ifndef DEEPZIG_SCRATCH_H
#define DEEPZIG_SCRATCH_H

#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>

/* thread_floats(use, count): at least `count` floats of the calling thread's own, freed when it ends; NULL if there is no
 * memory. A later call for the same `use` may move them: tasks take one, what a whole kernel call shares the other. */
enum { FOR_TASK, FOR_CALL };

typedef struct {
    float *floats[2];
    int64_t capacity[2];
} ThreadFloats;

static pthread_key_t thread_floats_key; /* its values are freed when their threads end */

static void free_thread_floats(void *of_thread) {
    ThreadFloats *own = of_thread;
    free(own->floats[0]);
    free(own->floats[1]);
    free(own);
}

__attribute__((constructor)) static void make_thread_floats_key(void) {
    if (pthread_key_create(&thread_floats_key, free_thread_floats)) abort();
}

static inline float *thread_floats(int use, int64_t count) {
    static __thread ThreadFloats *own;
    if (!own) {
        ThreadFloats *made = calloc(1, sizeof *made);
        if (!made || pthread_setspecific(thread_floats_key, made)) {
            free(made);
            return NULL;
        }
        own = made;
    }
    if (count > own->capacity[use] || !own->floats[use]) {
        free(own->floats[use]);
        own->capacity[use] = count + count / 2 + 16;
        own->floats[use] = (float *)aligned_alloc(64, (size_t)((own->capacity[use] * 4 + 63) / 64 * 64));
        if (!own->floats[use]) own->capacity[use] = 0;
    }
    return own->floats[use];
}

#endif
