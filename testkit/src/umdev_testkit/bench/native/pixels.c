/* Pixels: what the C library needs to fill and to copy as many bytes as a screen has. */
#include <string.h>
#include <time.h>

#include "umdev.h"
#include "bench_decls.h"

/* The thread's own time: a screen takes as long as a busy machine lets a thread run, or longer. */
static uint64_t own_time(void)
{
    struct timespec now;

    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

int umdev_bench_fill_bytes(uint8_t *to, int byte, uint64_t length, uint32_t count, uint64_t *times)
{
    for (uint32_t i = 0; i < count; i++) {
        uint64_t start = own_time();

        memset(to, byte, length);
        times[i] = own_time() - start;
    }
    return 0;
}

int umdev_bench_copy_bytes(uint8_t *to, const uint8_t *from, uint64_t length, uint32_t count, uint64_t *times)
{
    for (uint32_t i = 0; i < count; i++) {
        uint64_t start = own_time();

        memcpy(to, from, length);
        times[i] = own_time() - start;
    }
    return 0;
}
