/* irq: internal declarations of the core; no directives, cffi reads this too.
 *
 * A `umdev_irq` is every interrupt of one function: INTx, MSI, MSI-X, and VFIO's ERR and REQ notifications. Each vector
 * leads to an eventfd that a bus connects. Any thread may call anything here, with or without the device lock: the
 * mutex inside is a leaf, and no call waits for a peer (where io_setup(2) is refused: unless the peer fills the counter
 * of a blocking eventfd between a poll and a write). Errors are negative errno values.
 */

/* Who owns the state of vectors: masks, enables, pending bits. */
enum umdev_irq_policy {
    UMDEV_IRQ_POLICY_CORE = 0,  /* configuration space and MSI-X table, as the driver wrote them here */
    UMDEV_IRQ_POLICY_CLIENT = 1 /* the peer virtualizes both: an index is enabled by connecting it */
};

/* What configuration space says; PCI Local Bus 3.0, 6.2.2 (Command), 6.8.1.3 (MSI), 6.8.2.3 (MSI-X). */
enum umdev_irq_state {
    UMDEV_IRQ_MSI_ENABLED = 1,
    UMDEV_IRQ_MSIX_ENABLED = 2,
    UMDEV_IRQ_MSIX_MASKED = 4,
    UMDEV_IRQ_INTX_DISABLED = 8,
    UMDEV_IRQ_BUS_MASTER = 16
};

/* What became of interrupts, since the object was made. */
typedef struct umdev_irq_counters {
    uint64_t sent;    /* eventfds signalled (a saturated one counts: its reader has a signal to come) */
    uint64_t pended;  /* messages kept as pending */
    uint64_t dropped; /* messages that bus mastering forbade */
} umdev_irq_counters;

/* NULL without memory, or for more than 32 MSI or 2048 MSI-X vectors. Unconnected, masked, policy CORE. */
umdev_irq *umdev_irq_new(int has_intx, uint32_t msi_vectors, uint32_t msix_vectors);
void umdev_irq_free(umdev_irq *irq);
uint32_t umdev_irq_vectors(const umdev_irq *irq, uint32_t index); /* of a VFIO index; 0 for unknown ones */
void umdev_irq_set_policy(umdev_irq *irq, int policy);

/* For buses. `index` is VFIO's (enum umdev_irq_index). The descriptor is dup'ed; -1 disconnects the vector. -EINVAL for
 * a bad index or vector or for what is no eventfd. A pending interrupt that the connection allows is delivered. */
int umdev_irq_connect(umdev_irq *irq, uint32_t index, uint32_t vector, int fd);
/* INTx only: a write to this eventfd unmasks, as umdev_irq_unmask. One thread per process watches all of them. */
int umdev_irq_connect_unmask(umdev_irq *irq, uint32_t index, uint32_t vector, int fd);
/* For buses that drive INTx as a level (eventfds carry edges): called with each change of the pin, gates included, and
 * at once when it is high. It runs with the mutex held: it must not wait, nor call anything here. NULL ends it, and so
 * does umdev_irq_disconnect_all; none is running on return. */
typedef void (*umdev_level_listener)(void *context, int level);
void umdev_irq_on_level(umdev_irq *irq, umdev_level_listener listener, void *context);
/* For buses that send messages themselves: called in place of the eventfd of each MSI or MSI-X vector, when nothing
 * masks it. `address` and `data` are those of the MSI-X table; MSI has them in configuration space, and 0 comes here.
 * It runs as a level listener does, and ends as one. What pended for want of a listener goes out at once. */
typedef void (*umdev_message_listener)(void *context, uint32_t index, uint32_t vector, uint64_t address,
                                       uint32_t data);
void umdev_irq_on_message(umdev_irq *irq, umdev_message_listener listener, void *context);
int umdev_irq_mask(umdev_irq *irq, uint32_t index, uint32_t vector);
int umdev_irq_unmask(umdev_irq *irq, uint32_t index, uint32_t vector);
/* Disconnect all vectors of an index and forget its masks and pending bits. */
int umdev_irq_disable(umdev_irq *irq, uint32_t index);
/* The bus has gone: disconnect all vectors and listeners and forget masks. Under policy CORE pending bits are the
 * function's state, so they stay until a reset, and the next connection delivers them. */
void umdev_irq_disconnect_all(umdev_irq *irq);
/* The client's own test: write the connected eventfd whatever the masks say. -ENOTCONN if there is none. */
int umdev_irq_trigger(umdev_irq *irq, uint32_t index, uint32_t vector);

/* For models. A message on the enabled kind: 0 sent or pending, -EINVAL no such vector, -EPERM no bus mastering (the
 * message is lost, PCIe 6.0, 7.5.1.1.3), -ENODEV neither MSI nor MSI-X is enabled. It pends while it is masked or
 * nobody is connected. With fewer MSI messages allocated (policy CLIENT: connected) than declared, vectors share:
 * modulo that count. */
int umdev_irq_signal(umdev_irq *irq, uint32_t vector);
void umdev_irq_set_level(umdev_irq *irq, uint32_t source, int level);
/* A message where messages are enabled, else source `vector` of the INTx level goes high. Results as signal. */
int umdev_irq_raise(umdev_irq *irq, uint32_t vector);
/* ERR or REQ: 0, -EINVAL for another index, -ENOTCONN. */
int umdev_irq_notify(umdev_irq *irq, uint32_t index);

/* For configuration space. */
void umdev_irq_set_state(umdev_irq *irq, uint32_t flags);
/* Messages allocated (a power of two, at most what was declared) and the per-vector mask bits of MSI. */
void umdev_irq_set_msi(umdev_irq *irq, uint32_t allocated, uint32_t mask);
uint32_t umdev_irq_msi_pending(umdev_irq *irq);
/* 1 while a source is high, whatever gates the pin: Status bit 3 (PCI Local Bus 3.0, 6.2.3). */
int umdev_irq_level(umdev_irq *irq);
int umdev_irq_mode(umdev_irq *irq); /* the VFIO index on which an interrupt would go out now; -1: none */

/* Sources low, pending bits and the MSI-X table as after power-on; connections and what the client masked stay. */
void umdev_irq_reset(umdev_irq *irq);

/* Save and restore of what configuration space does not hold; the table goes through its byte handler. */
int umdev_irq_pending(umdev_irq *irq, uint32_t index, uint32_t vector);
void umdev_irq_set_pending(umdev_irq *irq, uint32_t index, uint32_t vector, int pending); /* may send it */
uint32_t umdev_irq_sources(const umdev_irq *irq); /* how many there are */
int umdev_irq_source(umdev_irq *irq, uint32_t source);
void umdev_irq_read_counters(umdev_irq *irq, umdev_irq_counters *ret);

/* The MSI-X table and pending bit array, for `umdev_device_add_overlay` (context: the umdev_irq; offset: from the start
 * of the structure; any alignment and length). Need no device lock. Return enum umdev_result. */
int umdev_irq_msix_table(void *context, uint64_t offset, void *bytes, uint32_t length, uint32_t flags);
int umdev_irq_msix_pba(void *context, uint64_t offset, void *bytes, uint32_t length, uint32_t flags);
