/* A pool of pthreads that runs one parallel loop at a time. Included once, by _pool.pyx.
 *
 * parallel_for publishes a job by opening the gate; workers join it, take tasks, and leave. Each thread has its share, a
 * run of tasks one after the other, since those read memory that lies together (decoding reads 18 % faster than with one
 * counter for all); a thread that has done its own takes from the others'. The caller takes part, then closes the gate and
 * waits only for workers that have joined: one that is still waking up is never waited for. Workers that a job has no share
 * for, those of an earlier one with more threads, neither join nor stay awake for it. After a job workers spin, as long as
 * the Python between two steps takes, since the next kernel of a step comes within microseconds; then they sleep. Spinning
 * takes a core from BLAS threads, so whoever is about to call BLAS parks the workers first. (Giving the core up inside the
 * spin, by sched_yield, was worse: the scheduler then kept the worker off its core through the next job.)
 */
#ifndef DEEPZIG_POOL_H
#define DEEPZIG_POOL_H

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <time.h>
#include <unistd.h>

typedef void (*task_fn)(void *ctx, int64_t task, int thread);

enum { POOL_MOST_THREADS = 1024, POOL_LEAST_WORKERS = 3, POOL_SPIN_NS = 200000, POOL_PAUSES_PER_LOOK = 32 };

/* gate = job number << 27 | threads of the job << 16 | open << 15 | workers that have joined */
#define POOL_OPEN ((uint64_t)1 << 15)
#define POOL_JOINED (POOL_OPEN - 1)
#define POOL_THREADS(gate) ((int)((gate) >> 16 & 0x7ff))
#define POOL_JOB(gate) ((gate) >> 27)

typedef struct {
    _Alignas(64) _Atomic int64_t next_task;
    int64_t end;
} PoolShare;

static struct {
    _Alignas(64) _Atomic uint64_t gate;
    PoolShare shares[POOL_MOST_THREADS];
    /* The job: written while the gate is closed and nobody has joined. */
    _Alignas(64) task_fn fn;
    void *ctx;
    int n_threads;
    int n_workers; /* started so far */
    _Alignas(64) _Atomic uint8_t asleep[POOL_MOST_THREADS]; /* whether the worker sleeps */
    _Atomic int busy;   /* a thread is inside parallel_for */
    _Atomic int parked; /* workers without a job sleep at once, until the next job */
    int handles_fork;
    pthread_mutex_t mutex;
    pthread_cond_t wake;
} pool = {.mutex = PTHREAD_MUTEX_INITIALIZER, .wake = PTHREAD_COND_INITIALIZER};

static inline void pool_pause(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("isb");
#endif
}

/* Tasks round and keep subnormals as C has it, whatever the caller's thread does: other libraries set threads to take
 * subnormals for zero, which fp8 becomes on its way, and results must not depend on the thread. Returns the thread's mode. */
static inline uint64_t pool_set_float_mode(void) {
    uint64_t mode = 0;
#if defined(__x86_64__)
    mode = __builtin_ia32_stmxcsr();
    if ((mode & ~0x3fu) != 0x1f80) __builtin_ia32_ldmxcsr((uint32_t)(mode & 0x3f) | 0x1f80); /* 0x3f: what happened so far */
#elif defined(__aarch64__)
    __asm__ volatile("mrs %0, fpcr" : "=r"(mode));
    if (mode) __asm__ volatile("msr fpcr, %0" ::"r"((uint64_t)0));
#endif
    return mode;
}

static inline void pool_restore_float_mode(uint64_t mode) {
#if defined(__x86_64__)
    if ((mode & ~0x3fu) != 0x1f80) __builtin_ia32_ldmxcsr((uint32_t)mode);
#elif defined(__aarch64__)
    if (mode) __asm__ volatile("msr fpcr, %0" ::"r"(mode));
#endif
}

static inline int64_t pool_now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static void pool_take_tasks(int thread) {
    for (int i = 0; i < pool.n_threads; i++) {
        PoolShare *share = &pool.shares[(thread + i) % pool.n_threads];
        /* Looked at first: finding a share empty by the addition would take its cache line from all others, n² times. */
        while (atomic_load_explicit(&share->next_task, memory_order_relaxed) < share->end) {
            int64_t task = atomic_fetch_add_explicit(&share->next_task, 1, memory_order_relaxed);
            if (task >= share->end) break;
            pool.fn(pool.ctx, task, thread);
        }
    }
}

/* Whether a job is open that wants this thread, other than last_job. */
static inline int pool_has_job(uint64_t gate, int thread, uint64_t last_job) {
    return (gate & POOL_OPEN) && POOL_JOB(gate) != last_job && thread < POOL_THREADS(gate);
}

/* Joins the open job if it wants this thread and is not last_job; says whether it did. */
static int pool_join(int thread, uint64_t *last_job) {
    uint64_t gate = atomic_load_explicit(&pool.gate, memory_order_acquire);
    while (pool_has_job(gate, thread, *last_job)) {
        if (atomic_compare_exchange_weak_explicit(&pool.gate, &gate, gate + 1, memory_order_acquire,
                                                  memory_order_acquire)) {
            *last_job = POOL_JOB(gate);
            return 1;
        }
    }
    return 0;
}

static void pool_sleep(int thread, uint64_t last_job) {
    pthread_mutex_lock(&pool.mutex);
    /* Sequentially consistent, as are the gate's opening and the look at `asleep` in pool_open: one of both sees. */
    atomic_store(&pool.asleep[thread], 1);
    while (!pool_has_job(atomic_load(&pool.gate), thread, last_job)) pthread_cond_wait(&pool.wake, &pool.mutex);
    atomic_store(&pool.asleep[thread], 0);
    pthread_mutex_unlock(&pool.mutex);
}

static void *pool_worker(void *argument) {
    int thread = (int)(intptr_t)argument;
    uint64_t last_job = 0;
    pool_set_float_mode(); /* a new thread has that of the one that starts it */
    for (;;) {
        int64_t sleep_at = pool_now_ns() + POOL_SPIN_NS;
        while (!pool_join(thread, &last_job)) {
            for (int i = 0; i < POOL_PAUSES_PER_LOOK && !pool_has_job(atomic_load(&pool.gate), thread, last_job); i++)
                pool_pause();
            if (atomic_load_explicit(&pool.parked, memory_order_relaxed) || pool_now_ns() > sleep_at)
                pool_sleep(thread, last_job);
        }
        pool_take_tasks(thread);
        atomic_fetch_sub_explicit(&pool.gate, 1, memory_order_release);
    }
    return 0;
}

/* The child of a fork has no workers; they start again with its first job. */
static void pool_after_fork(void) {
    atomic_store(&pool.gate, POOL_JOB(atomic_load(&pool.gate)) << 27);
    pthread_mutex_init(&pool.mutex, 0);
    pthread_cond_init(&pool.wake, 0);
    for (int i = 0; i < POOL_MOST_THREADS; i++) atomic_store(&pool.asleep[i], 0);
    atomic_store(&pool.busy, 0);
    pool.n_workers = 0;
}

/* More workers than cores would only take turns spinning; a few are allowed, so that small machines can try threads. */
static int pool_most_workers(void) {
    long cores = sysconf(_SC_NPROCESSORS_ONLN);
    if (cores > POOL_MOST_THREADS) cores = POOL_MOST_THREADS;
    return cores - 1 > POOL_LEAST_WORKERS ? (int)(cores - 1) : POOL_LEAST_WORKERS;
}

/* Starts workers until there are n, or the system refuses: the pool works with any number of them. */
static void pool_start_workers(int n) {
    sigset_t all, before;
    pthread_attr_t attributes;
    static int most; /* asking the system takes microseconds, in each region where threads are more than cores */
    if (!most) most = pool_most_workers();
    if (pool.n_workers >= most) return;
    if (!pool.handles_fork) pool.handles_fork = pthread_atfork(0, 0, pool_after_fork) == 0;
    pthread_attr_init(&attributes);
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before); /* signals belong to Python's threads */
    while (pool.n_workers < n && pool.n_workers < most) {
        pthread_t id;
        if (pthread_create(&id, &attributes, pool_worker, (void *)(intptr_t)(pool.n_workers + 1))) break;
        pool.n_workers++;
    }
    pthread_sigmask(SIG_SETMASK, &before, 0);
    pthread_attr_destroy(&attributes);
}

static int pool_any_asleep(int n_threads) {
    for (int i = 1; i < n_threads; i++)
        if (atomic_load(&pool.asleep[i])) return 1;
    return 0;
}

static void pool_open(task_fn fn, void *ctx, int64_t n_tasks, int n_threads) {
    uint64_t job = POOL_JOB(atomic_load_explicit(&pool.gate, memory_order_relaxed)) + 1;
    pool.fn = fn;
    pool.ctx = ctx;
    pool.n_threads = n_threads;
    for (int i = 0; i < n_threads; i++) {
        pool.shares[i].end = n_tasks * (i + 1) / n_threads;
        atomic_store_explicit(&pool.shares[i].next_task, n_tasks * i / n_threads, memory_order_relaxed);
    }
    atomic_store_explicit(&pool.parked, 0, memory_order_relaxed);
    atomic_store(&pool.gate, job << 27 | (uint64_t)n_threads << 16 | POOL_OPEN);
    if (pool_any_asleep(n_threads)) {
        pthread_mutex_lock(&pool.mutex);
        pthread_mutex_unlock(&pool.mutex);
        pthread_cond_broadcast(&pool.wake);
    }
}

static void pool_close(void) {
    int64_t looks = 0;
    uint64_t gate = atomic_fetch_and(&pool.gate, ~POOL_OPEN);
    while (gate & POOL_JOINED) {
        /* A worker that lost its core to another process gets it back sooner if this one is given up. */
        if (++looks % 1024 == 0) sched_yield();
        pool_pause();
        gate = atomic_load_explicit(&pool.gate, memory_order_acquire);
    }
}

static void pool_park(void) { atomic_store_explicit(&pool.parked, 1, memory_order_relaxed); }

/* Calls fn(ctx, task, thread) for every task in [0, n_tasks), on at most n_threads threads; thread is in [0, n_threads)
 * and no two calls with the same number overlap. A call while another thread uses the pool, or from inside a task,
 * runs its tasks in order on the calling thread as thread 0. */
static void pool_parallel_for(task_fn fn, void *ctx, int64_t n_tasks, int n_threads) {
    const uint64_t mode = pool_set_float_mode();
    if (n_threads > n_tasks) n_threads = (int)n_tasks;
    if (n_threads > POOL_MOST_THREADS) n_threads = POOL_MOST_THREADS;
    if (n_threads <= 1 || atomic_exchange(&pool.busy, 1)) {
        for (int64_t task = 0; task < n_tasks; task++) fn(ctx, task, 0);
    } else {
        if (pool.n_workers < n_threads - 1) pool_start_workers(n_threads - 1);
        pool_open(fn, ctx, n_tasks, n_threads);
        pool_take_tasks(0);
        pool_close();
        atomic_store(&pool.busy, 0);
    }
    pool_restore_float_mode(mode);
}

#endif
