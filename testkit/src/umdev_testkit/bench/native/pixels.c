/* Pixels: what the C library needs to fill and to copy as many bytes as a screen has. A batch is the whole screen. */
#include <string.h>

#include "umdev.h"
#include "bench_decls.h"
#include "clock.h"

int umdev_bench_fill_bytes(uint8_t *to, int byte, uint64_t length, uint32_t count, uint64_t *times)
{
    for (uint32_t i = 0; i < count; i++) {
        uint64_t start = umdev_bench_now();

        memset(to, byte, length);
        times[i] = umdev_bench_now() - start;
    }
    return 0;
}

int umdev_bench_copy_bytes(uint8_t *to, const uint8_t *from, uint64_t length, uint32_t count, uint64_t *times)
{
    for (uint32_t i = 0; i < count; i++) {
        uint64_t start = umdev_bench_now();

        memcpy(to, from, length);
        times[i] = umdev_bench_now() - start;
    }
    return 0;
}
