/* The bench device's only C handler. */
#include "umdev.h"

#include "bench_decls.h"

int umdev_bench_counter(void *device, const umdev_access *access, uint64_t *value)
{
    static uint64_t accesses; /* a server process of the bench has one device, and its lock is held here */

    if (!(access->flags & UMDEV_WRITE))
        *value = accesses;
    accesses++;
    return UMDEV_OK;
}
