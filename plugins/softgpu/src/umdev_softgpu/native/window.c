/* softgpu: pointers into the memory of a surface, page by page. */
#include "internal.h"

void window_open(window *w, softgpu_space *space, uint32_t needed)
{
    w->space = space;
    w->needed = needed;
    w->generation = space ? space_generation(space) : 0;
    for (unsigned i = 0; i < KEPT; i++)
        w->kept[i].page = 0;
}

static int window_walk(window *w, section *s, uint64_t address, uint8_t **host, uint64_t *length,
                       softgpu_fault *fault)
{
    softgpu_run run;
    int result = space_walk(w->space, s, address, w->needed, &run, fault);
    if (result)
        return result;
    result = section_reach(s, &run, w->needed, host, length);
    return result ? fault_set(fault, result, address, w->needed, 0, run.address) : SOFTGPU_OK;
}

static void window_keep(window *w, uint64_t page, uint8_t *host, uint64_t length)
{
    unsigned slot = page % KEPT;
    w->kept[slot].page = page + 1;
    w->kept[slot].host = host;
    w->kept[slot].length = length;
}

int window_find(window *w, section *s, uint64_t address, uint64_t wanted, uint8_t **host, uint64_t *length,
                softgpu_fault *fault)
{
    uint64_t generation = space_generation(w->space);
    if (UNLIKELY(generation != w->generation))
        window_open(w, w->space, w->needed);
    uint64_t page = address / PAGE, offset = address % PAGE;
    unsigned slot = page % KEPT;
    if (w->kept[slot].page == page + 1 && w->kept[slot].length > offset) {
        *host = w->kept[slot].host + offset;
        *length = w->kept[slot].length - offset;
        return SOFTGPU_OK;
    }
    uint8_t *first;
    uint64_t reach;
    int result = window_walk(w, s, address - offset, &first, &reach, fault);
    if (UNLIKELY(result || reach <= offset)) /* memory that begins or ends within the page */
        return result == BY_MESSAGE ? result : window_walk(w, s, address, host, length, fault);
    /* Long stretches move faster: join pages that follow each other in this process too. */
    while (reach - offset < wanted && reach < SECTION_BYTES) {
        uint64_t following = address - offset + reach;
        uint8_t *next;
        uint64_t more;
        if (following < address || following % PAGE || window_walk(w, s, following, &next, &more, NULL))
            break;
        if (next != first + reach) {
            window_keep(w, following / PAGE, next, more); /* it is asked for next */
            break;
        }
        reach += more;
    }
    window_keep(w, page, first, reach);
    *host = first + offset;
    *length = reach - offset;
    return SOFTGPU_OK;
}
