/* softgpu: what an engine's thread is to the kernel's scheduler. */
#include "internal.h"

#include <errno.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

/* Linux uapi, linux/sched/types.h: the first version of the structure, of 48 bytes. */
struct attributes {
    uint32_t size;
    uint32_t policy;
    uint64_t flags;
    int32_t nice;
    uint32_t priority;
    uint64_t runtime;
    uint64_t deadline;
    uint64_t period;
};

/* A thread that wakes takes the processor from one with longer slices at once, else it may have to wait for a tick:
 * 4 ms, for each message between a guest and its device. The thread gets no less for it. Linux knows it from 6.12 on
 * (before, `runtime` of such a thread means nothing); needs no privilege, and concerns this thread alone. */
int softgpu_thread_computes(uint64_t slice_ns)
{
    struct attributes attributes = {.size = sizeof attributes};
    if (syscall(SYS_sched_getattr, 0, &attributes, sizeof attributes, 0) != 0)
        return -errno;
    if (attributes.policy != SCHED_OTHER) /* somebody has decided otherwise */
        return 0;
    attributes.size = sizeof attributes;
    attributes.runtime = slice_ns;
    return syscall(SYS_sched_setattr, 0, &attributes, 0) == 0 ? 0 : -errno;
}
