/* softgpu: the table that a vendor's C gets. */
#include "internal.h"

static const softgpu_api table = {
    .header = {sizeof(softgpu_api), SOFTGPU_ABI_MAJOR, SOFTGPU_ABI_MINOR},
    .port_new = softgpu_port_new,
    .port_free = softgpu_port_free,
    .port_set_memory = softgpu_port_set_memory,
    .port_close = softgpu_port_close,
    .space_linear = softgpu_space_linear,
    .space_paged = softgpu_space_paged,
    .space_free = softgpu_space_free,
    .space_set_root = softgpu_space_set_root,
    .space_invalidate = softgpu_space_invalidate,
    .space_read = softgpu_space_read,
    .space_write = softgpu_space_write,
    .space_translate = softgpu_space_translate,
    .budget_left = softgpu_budget_left,
    .blit_begin = softgpu_blit_begin,
    .blit_step = softgpu_blit_step,
    .bell_ring = softgpu_bell_ring,
};

const softgpu_api *softgpu_get_api(void)
{
    return &table;
}
