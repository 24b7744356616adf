/* Drives an edu device through /sys/bus/pci, with no driver bound: edu_sysfs BDF CHECK...
 *
 * Prints facts as name=value; the test knows which values are right.
 */

#include "edu.h"

#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>

struct edu {
    volatile uint8_t *bar;
    int config;
    uint8_t *page;    /* what the device reads and writes */
    uint64_t address; /* guest-physical */
    uint32_t seed;
};

static int open_file(const char *bdf, const char *name)
{
    char path[128];
    snprintf(path, sizeof path, "/sys/bus/pci/devices/%s/%s", bdf, name);
    int descriptor = open(path, O_RDWR | O_SYNC | O_CLOEXEC);
    need(descriptor >= 0, path);
    return descriptor;
}

/* The kernel tells where a locked page lies: Documentation/admin-guide/mm/pagemap.rst. */
static uint64_t physical_address(const void *page)
{
    uint64_t entry = 0;
    int pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
    need(pagemap >= 0, "pagemap");
    off_t at = (off_t)((uintptr_t)page / EDU_PAGE * sizeof entry);
    need(pread(pagemap, &entry, sizeof entry, at) == sizeof entry && entry >> 63, "the page has no address");
    close(pagemap);
    return (entry & ((1ull << 55) - 1)) * EDU_PAGE;
}

static void set_command(struct edu *edu, uint32_t bits)
{
    config_write(edu->config, PCI_COMMAND, 2, bits);
}

static void check_registers(struct edu *edu)
{
    fact("ident", "%08x", edu_read(edu->bar, EDU_IDENT));
    edu_write(edu->bar, EDU_LIVENESS, edu->seed);
    fact("liveness", "%d", edu_read(edu->bar, EDU_LIVENESS) == ~edu->seed);
    fact("factorial", "%u", edu_factorial(edu->bar, 12));
}

/* Writes to a memory BAR wait for nobody; a read comes after all of them. */
static void check_posted(struct edu *edu)
{
    uint32_t wrong = 0;
    for (uint32_t i = 0; i < 20000; i++) {
        edu_write(edu->bar, EDU_LIVENESS, edu->seed + i);
        if (i % 1000 == 999) {
            wrong += edu_read(edu->bar, EDU_LIVENESS) != ~(edu->seed + i);
        }
    }
    fact("posted-wrong", "%u", wrong);
}

/* Out to the device and back, with the buffer and the page overwritten in between. */
static void check_dma(struct edu *edu)
{
    uint8_t sent[EDU_PAGE];
    pattern(sent, edu->seed + 1);
    memcpy(edu->page, sent, EDU_PAGE);
    edu_dma(edu->bar, edu->address, 0);
    pattern(edu->page, edu->seed + 2);
    fact("page-differs-before", "%d", difference(edu->page, sent) > EDU_PAGE / 2);
    edu_dma(edu->bar, edu->address, EDU_DMA_TO_GUEST);
    fact("dma-bytes-wrong", "%u", difference(edu->page, sent));
}

/* The function asserts INTx: Status bit 3 shows the level, whatever the interrupt controller does. */
static void check_level(struct edu *edu)
{
    edu_write(edu->bar, EDU_IRQ_RAISE, 0x10);
    uint32_t asserted = config_read(edu->config, PCI_STATUS, 2) & PCI_STATUS_INTX;
    edu_write(edu->bar, EDU_IRQ_ACK, 0x10);
    uint32_t lowered = config_read(edu->config, PCI_STATUS, 2) & PCI_STATUS_INTX;
    fact("level", "%d%d", asserted != 0, lowered != 0);
}

/* Without bus mastering the function reaches no memory, in neither direction. */
static void check_bus_master(struct edu *edu)
{
    uint8_t before[EDU_PAGE], held[EDU_PAGE];
    pattern(held, edu->seed + 3);
    memcpy(edu->page, held, EDU_PAGE);
    edu_dma(edu->bar, edu->address, 0); /* the device holds this */
    pattern(before, edu->seed + 4);
    memcpy(edu->page, before, EDU_PAGE);

    set_command(edu, PCI_COMMAND_MEMORY);
    edu_dma(edu->bar, edu->address, EDU_DMA_TO_GUEST);
    fact("unmastered-page-changed", "%u", difference(edu->page, before));
    memcpy(edu->page, before, EDU_PAGE);
    edu_dma(edu->bar, edu->address, 0);
    set_command(edu, PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER);
    edu_dma(edu->bar, edu->address, EDU_DMA_TO_GUEST);
    fact("unmastered-device-changed", "%u", difference(edu->page, held));
}

/* A reset while a transfer is under way: it never lands, though memory and mastering are on again at once, and the
 * registers say again what to move, only not to start.
 */
static void check_reset(struct edu *edu)
{
    off_t express = config_find(edu->config, PCI_CAPABILITY_EXPRESS);
    if (!express || !(config_read(edu->config, express + EXPRESS_CAPABILITY, 4) & EXPRESS_CAN_FLR)) {
        fact("flr", "none");
        return;
    }
    uint8_t before[EDU_PAGE];
    uint32_t bar0 = config_read(edu->config, PCI_BAR0, 4);
    edu_dma(edu->bar, edu->address, 0);
    pattern(before, edu->seed + 5);
    memcpy(edu->page, before, EDU_PAGE);
    edu_write(edu->bar, EDU_LIVENESS, edu->seed);
    edu_dma_start(edu->bar, edu->address, EDU_DMA_TO_GUEST | EDU_DMA_IRQ);
    uint32_t started = edu_read(edu->bar, EDU_DMA_COMMAND) & EDU_DMA_START;
    config_write(edu->config, express + EXPRESS_CONTROL, 2, EXPRESS_FLR);
    uint32_t command = config_read(edu->config, PCI_COMMAND, 2);
    config_write(edu->config, PCI_BAR0, 4, bar0);
    set_command(edu, PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER);
    fact("flr", "done");
    fact("flr-during-dma", "%d", started != 0);
    fact("flr-command", "%u", command);
    fact("flr-liveness", "%08x", edu_read(edu->bar, EDU_LIVENESS));
    edu_dma_program(edu->bar, edu->address, EDU_DMA_TO_GUEST | EDU_DMA_IRQ);
    pause_ms(600);
    fact("flr-page-changed", "%u", difference(edu->page, before));
    fact("flr-interrupt", "%d", edu_read(edu->bar, EDU_IRQ_STATUS) != 0 ||
                                    (config_read(edu->config, PCI_STATUS, 2) & PCI_STATUS_INTX) != 0);
    fact("flr-factorial", "%u", edu_factorial(edu->bar, 5));
}

int main(int count, char **words)
{
    static const struct {
        const char *name;
        void (*run)(struct edu *);
    } checks[] = {
        {"registers", check_registers},
        {"posted", check_posted},
        {"dma", check_dma},
        {"level", check_level},
        {"bus-master", check_bus_master},
        {"reset", check_reset},
    };
    struct edu edu;

    need(count > 2, "edu_sysfs BDF CHECK...");
    edu.config = open_file(words[1], "config");
    int resource = open_file(words[1], "resource0");
    void *bar = mmap(NULL, EDU_PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, resource, 0);
    need(bar != MAP_FAILED, "resource0");
    edu.bar = bar;
    edu.page = mmap(NULL, EDU_PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    need(edu.page != MAP_FAILED && mlock(edu.page, EDU_PAGE) == 0, "a page");
    edu.address = physical_address(edu.page);
    need(getrandom(&edu.seed, sizeof edu.seed, 0) == sizeof edu.seed, "random bytes");
    set_command(&edu, PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER);
    for (int word = 2; word < count; word++) {
        int known = 0;
        for (unsigned check = 0; check < sizeof checks / sizeof *checks; check++) {
            if (!strcmp(words[word], checks[check].name)) {
                checks[check].run(&edu);
                known = 1;
            }
        }
        need(known, words[word]);
    }
    return 0;
}
