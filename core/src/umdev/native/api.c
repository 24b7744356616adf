/* The function table of umdev.h. */
#include "umdev.h"

/* In the order in which they build on one another. */
#include "device_decls.h"
#include "memory_decls.h"
#include "irq_decls.h"

static const umdev_api api = {
    .header = {.size = sizeof(umdev_api), .major = UMDEV_ABI_MAJOR, .minor = UMDEV_ABI_MINOR},
    .access = umdev_device_access,
    .lock = umdev_device_lock,
    .trylock = umdev_device_trylock,
    .unlock = umdev_device_unlock,
    .complete = umdev_device_complete,
    .user_data = umdev_device_user_data,
    .memory = umdev_device_memory,
    .irq = umdev_device_irq,
    .dma_read = umdev_memory_read,
    .dma_write = umdev_memory_write,
    .reader_enter = umdev_memory_reader_enter,
    .reader_exit = umdev_memory_reader_exit,
    .lookup = umdev_memory_lookup,
    .signal = umdev_irq_signal,
    .set_level = umdev_irq_set_level,
};

const umdev_api *umdev_get_api(void)
{
    return &api;
}
