/* Builds bare HVM and PVH domains with libxenctrl: test code only, as that library changes with every release of Xen.
 *
 * Structures and calls: Xen 4.17's xenctrl.h, xen/domctl.h and xen/arch-x86/hvm/save.h. */
#define _GNU_SOURCE
#include <stdint.h>

#include "xen_decls.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <xenctrl.h>
#include <xenforeignmemory.h>
#include <xen/hvm/save.h>

enum { PAGE = 4096, EXTENTS = 512, GDT_SIZE = 4 * 8, CODE = 0x10, DATA = 0x18 };
#define PAGING_POOL (8u << 20) /* bytes; Debian's Xen has no default that suffices */

struct umdev_xen {
    xc_interface *control;
    xenforeignmemory_handle *memory;
};

void umdev_xen_close(umdev_xen *xen)
{
    if (!xen)
        return;
    if (xen->control)
        xc_interface_close(xen->control);
    if (xen->memory)
        xenforeignmemory_close(xen->memory);
    free(xen);
}

umdev_xen *umdev_xen_open(int *ret)
{
    umdev_xen *xen = calloc(1, sizeof *xen);
    if (xen && (xen->control = xc_interface_open(NULL, NULL, 0)) && (xen->memory = xenforeignmemory_open(NULL, 0))) {
        *ret = 0;
        return xen;
    }
    *ret = -errno;
    umdev_xen_close(xen);
    return NULL;
}

static int result(int returned)
{
    return returned < 0 ? -errno : 0;
}

int umdev_xen_domain_create(umdev_xen *xen, uint32_t vcpus, int pvh, uint64_t most, uint32_t *ret_domain)
{
    struct xen_domctl_createdomain config = {
        .flags = XEN_DOMCTL_CDF_hvm | XEN_DOMCTL_CDF_hap, /* Debian's Xen has no shadow paging */
        .max_vcpus = vcpus,
        .max_evtchn_port = 1023,
        .max_grant_frames = 4,
        .max_maptrack_frames = 4,
        .grant_opts = XEN_DOMCTL_GRANT_version(1),
        .arch.emulation_flags = pvh ? XEN_X86_EMU_LAPIC : XEN_X86_EMU_ALL & ~XEN_X86_EMU_VPCI,
    };
    *ret_domain = 0; /* any free number */
    if (xc_domain_create(xen->control, ret_domain, &config) < 0)
        return -errno;
    if (xc_domain_max_vcpus(xen->control, *ret_domain, vcpus) < 0 ||
        xc_set_paging_mempool_size(xen->control, *ret_domain, PAGING_POOL) < 0 ||
        xc_domain_setmaxmem(xen->control, *ret_domain, most) < 0) {
        int error = -errno;
        xc_domain_destroy(xen->control, *ret_domain);
        return error;
    }
    return 0;
}

int umdev_xen_domain_populate(umdev_xen *xen, uint32_t domain, uint64_t first, uint32_t count)
{
    while (count) {
        xen_pfn_t frames[EXTENTS];
        uint32_t some = count < EXTENTS ? count : EXTENTS;
        for (uint32_t i = 0; i < some; i++)
            frames[i] = first + i;
        if (xc_domain_populate_physmap_exact(xen->control, domain, some, 0, 0, frames))
            return errno ? -errno : -ENOMEM;
        first += some;
        count -= some;
    }
    return 0;
}

static struct hvm_hw_cpu processor(uint32_t number, uint32_t entry, uint32_t second, uint32_t stack, uint32_t gdt)
{
    const uint32_t code = 0xC9B, data = 0xC93; /* present, 32 bits, pages; accessed code and data: save.h's format */
    return (struct hvm_hw_cpu){
        .rip = entry, .rsp = stack - number * PAGE, .rax = number, .rdi = number, .rsi = second, .rflags = 2,
        .cr0 = 0x11, /* PE, ET */
        .dr6 = 0xFFFF0FF0, .dr7 = 0x400,
        .cs_sel = CODE, .cs_limit = ~0u, .cs_arbytes = code,
        .ds_sel = DATA, .ds_limit = ~0u, .ds_arbytes = data,
        .es_sel = DATA, .es_limit = ~0u, .es_arbytes = data,
        .fs_sel = DATA, .fs_limit = ~0u, .fs_arbytes = data,
        .gs_sel = DATA, .gs_limit = ~0u, .gs_arbytes = data,
        .ss_sel = DATA, .ss_limit = ~0u, .ss_arbytes = data,
        .tr_limit = 0x67, .tr_arbytes = 0x8B, .ldtr_arbytes = 0x82,
        .gdtr_base = gdt, .gdtr_limit = GDT_SIZE - 1,
    };
}

static uint8_t *append(uint8_t *at, unsigned type, unsigned instance, const void *record, uint32_t length)
{
    struct hvm_save_descriptor descriptor = {.typecode = type, .instance = instance, .length = length};
    memcpy(at, &descriptor, sizeof descriptor);
    if (length)
        memcpy(at + sizeof descriptor, record, length);
    return at + sizeof descriptor + length;
}

/* The header names the hypervisor, so only that can write it: as the first record of a whole context. */
static int save_header(umdev_xen *xen, uint32_t domain, struct hvm_save_header *ret)
{
    size_t least = sizeof(struct hvm_save_descriptor) + sizeof *ret;
    int size = xc_domain_hvm_getcontext(xen->control, domain, NULL, 0);
    if (size < 0)
        return -errno;
    uint8_t *whole = calloc(1, (size_t)size + least);
    if (!whole)
        return -ENOMEM;
    int error = result(xc_domain_hvm_getcontext(xen->control, domain, whole, (uint32_t)size));
    memcpy(ret, whole + sizeof(struct hvm_save_descriptor), sizeof *ret);
    free(whole);
    return error;
}

int umdev_xen_domain_enter(umdev_xen *xen, uint32_t domain, uint32_t vcpus, uint32_t entry, uint32_t second,
                           uint32_t stack, uint32_t gdt)
{
    struct hvm_save_header header;
    int error = save_header(xen, domain, &header);
    if (error)
        return error;
    size_t record = sizeof(struct hvm_save_descriptor) + sizeof(struct hvm_hw_cpu);
    uint8_t *context = malloc(2 * sizeof(struct hvm_save_descriptor) + sizeof header + vcpus * record);
    if (!context)
        return -ENOMEM;
    uint8_t *end = append(context, HVM_SAVE_CODE(HEADER), 0, &header, sizeof header);
    for (uint32_t number = 0; number < vcpus; number++) {
        struct hvm_hw_cpu state = processor(number, entry, second, stack, gdt);
        end = append(end, HVM_SAVE_CODE(CPU), number, &state, sizeof state);
    }
    end = append(end, HVM_SAVE_CODE(END), 0, NULL, 0);
    int done = result(xc_domain_hvm_setcontext(xen->control, domain, context, (uint32_t)(end - context)));
    free(context);
    return done;
}

int umdev_xen_domain_unpause(umdev_xen *xen, uint32_t domain)
{
    return result(xc_domain_unpause(xen->control, domain));
}

int umdev_xen_domain_pause(umdev_xen *xen, uint32_t domain)
{
    return result(xc_domain_pause(xen->control, domain));
}

int umdev_xen_domain_shutdown(umdev_xen *xen, uint32_t domain, uint32_t reason)
{
    return result(xc_domain_shutdown(xen->control, domain, (int)reason));
}

int umdev_xen_domain_destroy(umdev_xen *xen, uint32_t domain)
{
    return result(xc_domain_destroy(xen->control, domain));
}

int umdev_xen_domain_state(umdev_xen *xen, uint32_t domain, umdev_xen_state *ret)
{
    xc_dominfo_t found;
    memset(ret, 0, sizeof *ret);
    int count = xc_domain_getinfo(xen->control, domain, 1, &found);
    if (count < 0)
        return errno == ESRCH ? 0 : -errno;
    if (count == 0 || found.domid != domain) /* else the next one after it */
        return 0;
    *ret = (umdev_xen_state){.exists = 1,
                             .dying = found.dying,
                             .shutdown = found.shutdown || found.crashed, /* libxc clears the first of a crash */
                             .reason = found.shutdown_reason,
                             .pages = found.nr_pages};
    return 0;
}

int umdev_xen_domain_list(umdev_xen *xen, uint32_t room, uint32_t *ret_domains, uint32_t *ret_count)
{
    *ret_count = 0;
    for (uint32_t next = 0; *ret_count < room; next = ret_domains[*ret_count - 1] + 1) {
        xc_dominfo_t found;
        int count = xc_domain_getinfo(xen->control, next, 1, &found);
        if (count < 0 && errno != ESRCH)
            return -errno;
        if (count <= 0)
            break;
        ret_domains[(*ret_count)++] = found.domid;
    }
    return 0;
}

static int copy(umdev_xen *xen, uint32_t domain, uint64_t address, uint8_t *buffer, uint64_t length, int write)
{
    while (length) {
        xen_pfn_t frame = address / PAGE;
        uint64_t offset = address % PAGE, some = PAGE - offset < length ? PAGE - offset : length;
        int failed = 0;
        uint8_t *page = xenforeignmemory_map(xen->memory, domain, write ? PROT_READ | PROT_WRITE : PROT_READ, 1,
                                             &frame, &failed);
        if (!page || failed) {
            int error = failed ? failed : -errno;
            if (page)
                xenforeignmemory_unmap(xen->memory, page, 1);
            return error;
        }
        if (write)
            memcpy(page + offset, buffer, some);
        else
            memcpy(buffer, page + offset, some);
        xenforeignmemory_unmap(xen->memory, page, 1);
        address += some;
        buffer += some;
        length -= some;
    }
    return 0;
}

int umdev_xen_domain_read(umdev_xen *xen, uint32_t domain, uint64_t address, void *buffer, uint64_t length)
{
    return copy(xen, domain, address, buffer, length, 0);
}

int umdev_xen_domain_write(umdev_xen *xen, uint32_t domain, uint64_t address, const void *buffer, uint64_t length)
{
    return copy(xen, domain, address, (uint8_t *)(uintptr_t)buffer, length, 1); /* only read from there */
}
