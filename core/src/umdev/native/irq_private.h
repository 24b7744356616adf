/* What irq.c, irq_eventfd.c, irq_life.c, irq_watch.c and msix.c share; nobody else includes this. */
#ifndef UMDEV_IRQ_PRIVATE_H
#define UMDEV_IRQ_PRIVATE_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>

#include "umdev.h"

#include "irq_decls.h"

enum {
    UMDEV_MSI_MAX = 32,    /* PCI Local Bus 3.0, 6.8.1.3: Multiple Message Capable encodes 1 to 32 */
    UMDEV_MSIX_MAX = 2048, /* same, 6.8.2.3: an 11-bit table size, less one */
    UMDEV_INTX_SOURCES = 64
};

/* One entry of the MSI-X table as the driver sees it; PCI Local Bus 3.0, 6.8.2. */
typedef struct umdev_msix_entry {
    uint32_t address_low;
    uint32_t address_high;
    uint32_t data;
    uint32_t control; /* bit 0 masks; the others are reserved and read 0 */
} umdev_msix_entry;

/* One vector's way out. */
typedef struct umdev_irq_vector {
    int fd;       /* our own duplicate of an eventfd; -1: nobody listens */
    bool masked;  /* by the client (MASK), and for INTx by each assertion */
    bool pending; /* a message that waits for its masks to clear */
} umdev_irq_vector;

typedef struct umdev_irq_index_state {
    umdev_irq_vector *vectors;
    uint32_t count;
    uint32_t reach; /* vectors up to the highest connected since the last disable; 0: not enabled, in VFIO's sense */
} umdev_irq_index_state;

struct umdev_irq {
    pthread_mutex_t mutex; /* a leaf: nothing is waited for under it */
    atomic_int references; /* the owner's, and the watcher's while it unmasks */
    uint32_t watch;        /* irq_watch.c's, under its mutex: slot + 1; 0: no unmask eventfd */
    int policy;
    uint32_t state;
    umdev_irq_index_state index[UMDEV_IRQ_COUNT];
    uint32_t msi_allocated;
    uint32_t msi_mask;
    umdev_msix_entry *table;
    bool *sources;
    uint32_t source_count;
    uint32_t sources_high;
    bool pin; /* what the listener knows of */
    umdev_level_listener listener;
    void *listener_context;
    umdev_message_listener message_listener;
    void *message_context;
    umdev_irq_counters counters;
};

/* Deliver a pending MSI-X or MSI vector if nothing holds it any more. The mutex is held. */
void umdev_irq_flush_vector(umdev_irq *irq, uint32_t index, uint32_t vector);
/* After power-on every entry is zero and masked. The mutex is held. */
void umdev_msix_reset(umdev_irq *irq);

/* A duplicate of a checked eventfd, or a negative errno: -EINVAL for what is none. */
int umdev_eventfd_dup(int fd);
/* Add 1 to the counter of what umdev_eventfd_dup gave; one that is full stays full. Waits for nobody, where the kernel
 * takes asynchronous requests (io_submit(2)) of this process; any thread. */
void umdev_eventfd_signal(int fd);

void umdev_irq_close_vector(umdev_irq_vector *vector);
void umdev_irq_unref(umdev_irq *irq);
/* Watch `fd` (taken over) for `irq`, in place of an earlier one; -1 stops. 0 or a negative errno (fd is closed). */
int umdev_irq_watch(umdev_irq *irq, int fd);

#endif
