/* Found before deepzig's own: a CPU that has everything, for _cpuid.pyx. */
#ifndef DEEPZIG_CPU_CHECK_H
#define DEEPZIG_CPU_CHECK_H

#include <stdint.h>

static int cpu_id(uint32_t leaf, uint32_t subleaf, uint32_t registers[4]) {
    (void)leaf, (void)subleaf;
    for (int i = 0; i < 4; i++) registers[i] = UINT32_MAX;
    return 1;
}

static uint64_t os_saved_states(void) { return UINT64_MAX; }

static int request_tile_data(void) { return 1; }

#endif
