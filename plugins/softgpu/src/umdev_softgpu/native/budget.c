/* softgpu: how much a step may do. */
#include "internal.h"

#include <time.h>

int softgpu_budget_left(const softgpu_budget *budget)
{
    if (budget->units <= 0 || __atomic_load_n(&budget->stop, __ATOMIC_ACQUIRE))
        return 0;
    uint64_t deadline_ns = __atomic_load_n(&budget->deadline_ns, __ATOMIC_ACQUIRE);
    if (deadline_ns == 0)
        return 1;
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec < deadline_ns;
}

void softgpu_budget_stop(softgpu_budget *budget)
{
    __atomic_store_n(&budget->stop, 1, __ATOMIC_RELEASE);
}

void softgpu_budget_expire(softgpu_budget *budget)
{
    __atomic_store_n(&budget->deadline_ns, 1, __ATOMIC_RELEASE); /* long past */
}
