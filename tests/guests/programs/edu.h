/* What the guest programs for the edu device share. Register facts: QEMU, docs/specs/edu; PCI Local Bus 3.0, 6.1. */

#ifndef EDU_H
#define EDU_H

#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

enum {
    EDU_IDENT = 0x00,
    EDU_LIVENESS = 0x04,
    EDU_FACTORIAL = 0x08,
    EDU_STATUS = 0x20,
    EDU_IRQ_STATUS = 0x24,
    EDU_IRQ_RAISE = 0x60,
    EDU_IRQ_ACK = 0x64,
    EDU_DMA_SOURCE = 0x80,
    EDU_DMA_TARGET = 0x88,
    EDU_DMA_COUNT = 0x90,
    EDU_DMA_COMMAND = 0x98,

    EDU_COMPUTING = 0x01,
    EDU_FACTORIAL_IRQ = 0x80,
    EDU_DMA_START = 0x01,
    EDU_DMA_TO_GUEST = 0x02,
    EDU_DMA_IRQ = 0x04,
    EDU_DMA_DONE = 0x100, /* in IRQ_STATUS */

    EDU_BUFFER = 0x40000,
    EDU_PAGE = 4096,

    PCI_COMMAND = 0x04,
    PCI_STATUS = 0x06,
    PCI_BAR0 = 0x10,
    PCI_CAPABILITIES = 0x34,
    PCI_COMMAND_MEMORY = 0x0002,
    PCI_COMMAND_MASTER = 0x0004,
    PCI_STATUS_INTX = 0x0008,
    PCI_CAPABILITY_MSI = 0x05,
    PCI_CAPABILITY_EXPRESS = 0x10,
    EXPRESS_CAPABILITY = 4, /* device capabilities and control, from the capability's start */
    EXPRESS_CONTROL = 8,
    EXPRESS_CAN_FLR = 1 << 28,
    EXPRESS_FLR = 1 << 15,
    MSI_CONTROL = 2,
    MSI_ENABLE = 1,
};

/* Print one fact, which the test compares with what it expects. */
__attribute__((format(printf, 2, 3))) static inline void fact(const char *name, const char *format, ...)
{
    va_list values;
    va_start(values, format);
    printf("%s=", name);
    vprintf(format, values);
    printf("\n");
    fflush(stdout);
    va_end(values);
}

/* End with a message when something that must work did not. */
static inline void need(int holds, const char *what)
{
    if (!holds) {
        perror(what);
        exit(1);
    }
}

static inline void pause_ms(unsigned milliseconds)
{
    struct timespec left = {.tv_sec = milliseconds / 1000, .tv_nsec = (long)(milliseconds % 1000) * 1000000};
    nanosleep(&left, NULL);
}

static inline uint32_t edu_read(volatile uint8_t *bar, unsigned offset)
{
    return *(volatile uint32_t *)(bar + offset);
}

static inline void edu_write(volatile uint8_t *bar, unsigned offset, uint32_t value)
{
    *(volatile uint32_t *)(bar + offset) = value;
}

static inline void edu_write_wide(volatile uint8_t *bar, unsigned offset, uint64_t value)
{
    *(volatile uint64_t *)(bar + offset) = value;
}

/* Wait until the bits of a register are clear; 0 when they are not within five seconds. */
static inline int edu_await_clear(volatile uint8_t *bar, unsigned offset, uint32_t bits)
{
    for (int tries = 0; tries < 5000; tries++) {
        if (!(edu_read(bar, offset) & bits)) {
            return 1;
        }
        pause_ms(1);
    }
    return 0;
}

static inline uint32_t edu_factorial(volatile uint8_t *bar, uint32_t n)
{
    edu_write(bar, EDU_FACTORIAL, n);
    need(edu_await_clear(bar, EDU_STATUS, EDU_COMPUTING), "the factorial never ends");
    return edu_read(bar, EDU_FACTORIAL);
}

/* Describe a transfer of one page between `address` and the device's buffer; it starts if the command says so. */
static inline void edu_dma_program(volatile uint8_t *bar, uint64_t address, uint32_t command)
{
    int to_guest = (command & EDU_DMA_TO_GUEST) != 0;
    edu_write_wide(bar, EDU_DMA_SOURCE, to_guest ? EDU_BUFFER : address);
    edu_write_wide(bar, EDU_DMA_TARGET, to_guest ? address : EDU_BUFFER);
    edu_write_wide(bar, EDU_DMA_COUNT, EDU_PAGE);
    edu_write(bar, EDU_DMA_COMMAND, command);
}

static inline void edu_dma_start(volatile uint8_t *bar, uint64_t address, uint32_t command)
{
    edu_dma_program(bar, address, command | EDU_DMA_START);
}

static inline void edu_dma(volatile uint8_t *bar, uint64_t address, uint32_t command)
{
    edu_dma_start(bar, address, command);
    need(edu_await_clear(bar, EDU_DMA_COMMAND, EDU_DMA_START), "the transfer never ends");
}

static inline uint32_t config_read(int config, off_t offset, size_t length)
{
    uint32_t value = 0;
    need(pread(config, &value, length, offset) == (ssize_t)length, "cannot read configuration space");
    return value;
}

static inline void config_write(int config, off_t offset, size_t length, uint32_t value)
{
    need(pwrite(config, &value, length, offset) == (ssize_t)length, "cannot write configuration space");
}

/* Return the offset of a capability, or 0. */
static inline off_t config_find(int config, uint32_t id)
{
    off_t at = (off_t)config_read(config, PCI_CAPABILITIES, 1);
    for (int links = 0; at && links < 48; links++) {
        if (config_read(config, at, 1) == id) {
            return at;
        }
        at = (off_t)config_read(config, at + 1, 1);
    }
    return 0;
}

/* Fill a page with bytes that differ for every seed and position. */
static inline void pattern(uint8_t *page, uint32_t seed)
{
    for (uint32_t i = 0; i < EDU_PAGE; i++) {
        seed = seed * 1664525u + 1013904223u;
        page[i] = (uint8_t)(seed >> 24);
    }
}

/* Count the bytes in which two pages differ. */
static inline unsigned difference(const uint8_t *left, const uint8_t *right)
{
    unsigned count = 0;
    for (uint32_t i = 0; i < EDU_PAGE; i++) {
        count += left[i] != right[i];
    }
    return count;
}

#endif
