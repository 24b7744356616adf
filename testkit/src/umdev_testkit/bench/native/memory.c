/* Memory: copies and lookups, bare and through the core. The loops differ in the measured call only. */
#include "umdev.h"

#include <errno.h>
#include <stddef.h>
#include <string.h>

#include "bench_decls.h"
#include "clock.h"

enum { LARGEST_COPY = 4096 };

/* One for all loops, since how fast a copy is depends on where it goes: to an address as malloc gives it, a multiple of
 * 16 and of nothing more. */
enum { MALLOC_ALIGNMENT = 16 };
static _Alignas(LARGEST_COPY) uint8_t storage[MALLOC_ALIGNMENT + LARGEST_COPY];
static uint8_t *const destination = storage + MALLOC_ALIGNMENT;

/* Makes the compiler believe that somebody reads what `pointer` points to. */
static inline void keep(const void *pointer)
{
    __asm__ volatile("" : : "r"(pointer) : "memory");
}

int umdev_bench_memcpy(const uint8_t *source, uint64_t span, uint32_t length, uint32_t batch, uint32_t count,
                       uint64_t *times)
{
    uint64_t offset = 0;

    if (length == 0 || length > LARGEST_COPY || span < length)
        return -EINVAL;
    for (uint32_t i = 0; i < count; i++) {
        uint64_t start = umdev_bench_now();

        for (uint32_t j = 0; j < batch; j++) {
            memcpy(destination, source + offset, length);
            keep(destination);
            offset += length;
            if (offset + length > span)
                offset = 0;
        }
        times[i] = umdev_bench_now() - start;
    }
    return 0;
}

int umdev_bench_dma_read(const umdev_api *api, umdev_memory *memory, uint64_t iova, uint64_t span, uint32_t length,
                         uint32_t batch, uint32_t count, uint64_t *times)
{
    uint64_t offset = 0;

    if (length == 0 || length > LARGEST_COPY || span < length)
        return -EINVAL;
    for (uint32_t i = 0; i < count; i++) {
        uint64_t start = umdev_bench_now();

        for (uint32_t j = 0; j < batch; j++) {
            int result = api->dma_read(memory, 0, iova + offset, destination, length);

            if (result)
                return result;
            keep(destination);
            offset += length;
            if (offset + length > span)
                offset = 0;
        }
        times[i] = umdev_bench_now() - start;
    }
    return 0;
}

/* Not inlined, as the core's is called through a pointer. */
static __attribute__((noinline)) int search(const umdev_bench_map *maps, uint32_t count, uint64_t iova,
                                            umdev_span *ret)
{
    uint32_t low = 0;
    uint32_t high = count;
    uint64_t offset;

    while (low < high) {
        uint32_t middle = low + (high - low) / 2;

        if (maps[middle].iova <= iova)
            low = middle + 1;
        else
            high = middle;
    }
    if (low == 0)
        return -EFAULT;
    offset = iova - maps[low - 1].iova;
    if (offset >= maps[low - 1].size)
        return -EFAULT;
    ret->host = maps[low - 1].host + offset;
    ret->length = maps[low - 1].size - offset;
    return 0;
}

int umdev_bench_search(const umdev_bench_map *maps, uint32_t maps_count, const uint64_t *addresses,
                       uint32_t addresses_count, uint32_t batch, uint32_t count, uint64_t *times)
{
    umdev_span span = {0};
    int result = 0;

    for (uint32_t i = 0; i < count && result == 0; i++) {
        uint64_t start = umdev_bench_now();

        for (uint32_t j = 0; j < batch; j++) {
            result |= search(maps, maps_count, addresses[j & (addresses_count - 1)], &span);
            keep(&span);
        }
        times[i] = umdev_bench_now() - start;
    }
    return result;
}

int umdev_bench_lookup(const umdev_api *api, umdev_memory *memory, const uint64_t *addresses,
                       uint32_t addresses_count, uint32_t batch, uint32_t count, uint64_t *times)
{
    umdev_span span = {0};
    uint32_t ticket;
    const umdev_table *table = api->reader_enter(memory, &ticket);
    int result = 0;

    for (uint32_t i = 0; i < count && result == 0; i++) {
        uint64_t start = umdev_bench_now();

        for (uint32_t j = 0; j < batch; j++) {
            result |= api->lookup(table, 0, addresses[j & (addresses_count - 1)], &span);
            keep(&span);
        }
        times[i] = umdev_bench_now() - start;
    }
    api->reader_exit(memory, ticket);
    return result;
}
