/* Drives an edu device through the guest's own VFIO, behind an IOMMU: edu_vfio GROUP BDF
 *
 * Prints facts as name=value; the test knows which values are right.
 */

#include "edu.h"

#include <fcntl.h>
#include <linux/vfio.h>
#include <poll.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/random.h>

enum { IOVA = 0x100000, WAIT_MS = 3000 };

struct edu {
    volatile uint8_t *bar;
    int container, device, sysfs, interrupt;
    off_t config; /* where configuration space starts in the device's descriptor */
    uint8_t *page;
    uint32_t seed;
};

static void open_device(struct edu *edu, const char *number, const char *bdf)
{
    char path[128];
    edu->container = open("/dev/vfio/vfio", O_RDWR | O_CLOEXEC);
    need(edu->container >= 0 && ioctl(edu->container, VFIO_GET_API_VERSION) == VFIO_API_VERSION, "the container");
    snprintf(path, sizeof path, "/dev/vfio/%s", number);
    int group = open(path, O_RDWR | O_CLOEXEC);
    need(group >= 0, path);
    struct vfio_group_status status = {.argsz = sizeof status};
    need(!ioctl(group, VFIO_GROUP_GET_STATUS, &status) && status.flags & VFIO_GROUP_FLAGS_VIABLE, "the group");
    need(!ioctl(group, VFIO_GROUP_SET_CONTAINER, &edu->container), "VFIO_GROUP_SET_CONTAINER");
    need(!ioctl(edu->container, VFIO_SET_IOMMU, VFIO_TYPE1v2_IOMMU), "VFIO_SET_IOMMU");
    edu->device = ioctl(group, VFIO_GROUP_GET_DEVICE_FD, bdf);
    need(edu->device >= 0, "VFIO_GROUP_GET_DEVICE_FD");
    snprintf(path, sizeof path, "/sys/bus/pci/devices/%s/config", bdf);
    edu->sysfs = open(path, O_RDWR | O_CLOEXEC);
    need(edu->sysfs >= 0, path);

    struct vfio_region_info bar = {.argsz = sizeof bar, .index = VFIO_PCI_BAR0_REGION_INDEX};
    need(!ioctl(edu->device, VFIO_DEVICE_GET_REGION_INFO, &bar), "BAR 0");
    fact("bar0-size", "%llu", (unsigned long long)bar.size);
    void *mapped = mmap(NULL, EDU_PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, edu->device, (off_t)bar.offset);
    need(mapped != MAP_FAILED, "mapping BAR 0");
    edu->bar = mapped;
    struct vfio_region_info config = {.argsz = sizeof config, .index = VFIO_PCI_CONFIG_REGION_INDEX};
    need(!ioctl(edu->device, VFIO_DEVICE_GET_REGION_INFO, &config), "configuration space");
    edu->config = (off_t)config.offset;
}

static void map_page(struct edu *edu)
{
    edu->page = mmap(NULL, EDU_PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    need(edu->page != MAP_FAILED, "a page");
    struct vfio_iommu_type1_dma_map map = {
        .argsz = sizeof map,
        .flags = VFIO_DMA_MAP_FLAG_READ | VFIO_DMA_MAP_FLAG_WRITE,
        .vaddr = (uintptr_t)edu->page,
        .iova = IOVA,
        .size = EDU_PAGE,
    };
    need(!ioctl(edu->container, VFIO_IOMMU_MAP_DMA, &map), "VFIO_IOMMU_MAP_DMA");
}

static void unmap_page(struct edu *edu)
{
    struct vfio_iommu_type1_dma_unmap unmap = {.argsz = sizeof unmap, .iova = IOVA, .size = EDU_PAGE};
    need(!ioctl(edu->container, VFIO_IOMMU_UNMAP_DMA, &unmap), "VFIO_IOMMU_UNMAP_DMA");
    fact("unmapped", "%llu", (unsigned long long)unmap.size);
}

static void connect_interrupt(struct edu *edu)
{
    _Alignas(struct vfio_irq_set) char space[sizeof(struct vfio_irq_set) + sizeof(int32_t)] = {0};
    struct vfio_irq_set *set = (struct vfio_irq_set *)space;
    edu->interrupt = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    need(edu->interrupt >= 0, "eventfd");
    set->argsz = sizeof space;
    set->flags = VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_TRIGGER;
    set->index = VFIO_PCI_MSI_IRQ_INDEX;
    set->count = 1;
    memcpy(set->data, &edu->interrupt, sizeof edu->interrupt);
    need(!ioctl(edu->device, VFIO_DEVICE_SET_IRQS, set), "VFIO_DEVICE_SET_IRQS");
}

/* Return how many interrupts came; wait for the first one as long as is told. */
static unsigned interrupts(struct edu *edu, int milliseconds)
{
    uint64_t count = 0;
    struct pollfd waiting = {.fd = edu->interrupt, .events = POLLIN};
    if (poll(&waiting, 1, milliseconds) > 0 && read(edu->interrupt, &count, sizeof count) != sizeof count) {
        count = 0;
    }
    return (unsigned)count;
}

static void set_command(struct edu *edu, uint32_t bits)
{
    need(pwrite(edu->device, &bits, 2, edu->config + PCI_COMMAND) == 2, "the command register");
}

static void acknowledge(struct edu *edu)
{
    edu_write(edu->bar, EDU_IRQ_ACK, edu_read(edu->bar, EDU_IRQ_STATUS));
}

static void check_interrupts(struct edu *edu, const char *prefix)
{
    char name[64];
    unsigned count;

    edu_write(edu->bar, EDU_IRQ_RAISE, 0x20);
    count = interrupts(edu, WAIT_MS);
    snprintf(name, sizeof name, "%smsi-raised", prefix);
    fact(name, "%u", count);
    acknowledge(edu);
    edu_write(edu->bar, EDU_STATUS, EDU_FACTORIAL_IRQ);
    edu_write(edu->bar, EDU_FACTORIAL, 10);
    count = interrupts(edu, WAIT_MS);
    snprintf(name, sizeof name, "%smsi-factorial", prefix);
    fact(name, "%u %u", count, edu_read(edu->bar, EDU_FACTORIAL));
    edu_write(edu->bar, EDU_STATUS, 0);
    acknowledge(edu);
}

/* Out and back; each transfer ends with an interrupt, and its bytes are there when that comes. */
static void check_dma(struct edu *edu, const char *prefix)
{
    char name[64];
    uint8_t sent[EDU_PAGE];
    unsigned count;

    pattern(sent, ++edu->seed);
    memcpy(edu->page, sent, EDU_PAGE);
    edu_dma_start(edu->bar, IOVA, EDU_DMA_IRQ);
    count = interrupts(edu, WAIT_MS);
    acknowledge(edu);
    pattern(edu->page, ++edu->seed);
    edu_dma_start(edu->bar, IOVA, EDU_DMA_TO_GUEST | EDU_DMA_IRQ);
    count += interrupts(edu, WAIT_MS);
    snprintf(name, sizeof name, "%sdma-bytes-wrong", prefix);
    fact(name, "%u", difference(edu->page, sent));
    snprintf(name, sizeof name, "%sdma-interrupts", prefix);
    fact(name, "%u", count);
    acknowledge(edu);
}

/* Neither writes nor messages leave a function that is no bus master. */
static void check_bus_master(struct edu *edu)
{
    uint8_t before[EDU_PAGE];
    pattern(before, ++edu->seed);
    memcpy(edu->page, before, EDU_PAGE);
    set_command(edu, PCI_COMMAND_MEMORY);
    edu_dma(edu->bar, IOVA, EDU_DMA_TO_GUEST | EDU_DMA_IRQ);
    fact("unmastered-page-changed", "%u", difference(edu->page, before));
    fact("unmastered-interrupts", "%u", interrupts(edu, 300));
    acknowledge(edu);
    set_command(edu, PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER);
}

static void check_unmapped(struct edu *edu)
{
    uint8_t before[EDU_PAGE];
    pattern(before, ++edu->seed);
    memcpy(edu->page, before, EDU_PAGE);
    unmap_page(edu);
    edu_dma(edu->bar, IOVA, EDU_DMA_TO_GUEST);
    fact("unmapped-page-changed", "%u", difference(edu->page, before));
    need(!munmap(edu->page, EDU_PAGE), "munmap");
    map_page(edu);
}

/* A reset while a transfer that ends with an interrupt is under way.
 *
 * Through VFIO the kernel restores configuration space after 100 ms, which is about when the transfer would have ended;
 * so the bare bit is tried as well, with mastering and MSI switched on again at once behind VFIO's back. Either way the
 * registers say again what to move, only not to start.
 */
static void check_reset(struct edu *edu, int bare)
{
    const char *prefix = bare ? "flr-" : "reset-";
    char name[64];
    uint8_t before[EDU_PAGE];
    off_t express = config_find(edu->sysfs, PCI_CAPABILITY_EXPRESS);
    off_t msi = config_find(edu->sysfs, PCI_CAPABILITY_MSI);
    if (!express || !(config_read(edu->sysfs, express + EXPRESS_CAPABILITY, 4) & EXPRESS_CAN_FLR)) {
        fact(bare ? "flr" : "reset", "none");
        return;
    }
    pattern(before, ++edu->seed);
    memcpy(edu->page, before, EDU_PAGE);
    uint32_t bar0 = config_read(edu->sysfs, PCI_BAR0, 4);
    edu_dma_start(edu->bar, IOVA, EDU_DMA_TO_GUEST | EDU_DMA_IRQ);
    uint32_t started = edu_read(edu->bar, EDU_DMA_COMMAND) & EDU_DMA_START;
    if (bare) {
        uint32_t control = config_read(edu->sysfs, msi + MSI_CONTROL, 2);
        config_write(edu->sysfs, express + EXPRESS_CONTROL, 2, EXPRESS_FLR);
        config_write(edu->sysfs, PCI_BAR0, 4, bar0);
        config_write(edu->sysfs, PCI_COMMAND, 2, PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER);
        config_write(edu->sysfs, msi + MSI_CONTROL, 2, control & ~(uint32_t)MSI_ENABLE);
        config_write(edu->sysfs, msi + MSI_CONTROL, 2, control | MSI_ENABLE);
    } else {
        need(!ioctl(edu->device, VFIO_DEVICE_RESET), "VFIO_DEVICE_RESET");
        set_command(edu, PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER);
    }
    edu_dma_program(edu->bar, IOVA, EDU_DMA_TO_GUEST | EDU_DMA_IRQ);
    fact(bare ? "flr" : "reset", "%s", started ? "during-dma" : "too-late");
    snprintf(name, sizeof name, "%sinterrupts", prefix);
    fact(name, "%u", interrupts(edu, 600));
    snprintf(name, sizeof name, "%spage-changed", prefix);
    fact(name, "%u", difference(edu->page, before));
    check_interrupts(edu, prefix);
    check_dma(edu, prefix);
}

int main(int count, char **words)
{
    struct edu edu;
    need(count == 3, "edu_vfio GROUP BDF");
    need(getrandom(&edu.seed, sizeof edu.seed, 0) == sizeof edu.seed, "random bytes");
    open_device(&edu, words[1], words[2]);
    map_page(&edu);
    set_command(&edu, PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER);
    connect_interrupt(&edu);
    check_interrupts(&edu, "");
    check_dma(&edu, "");
    check_bus_master(&edu);
    check_unmapped(&edu);
    check_reset(&edu, 0);
    check_reset(&edu, 1);
    return 0;
}
