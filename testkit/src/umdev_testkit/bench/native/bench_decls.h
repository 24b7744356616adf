/* The bench's C side: floors, and loops that measure. No directives, cffi reads this too.
 * A function that measures fills times[0..count) with nanoseconds of CLOCK_MONOTONIC, each of one batch of operations,
 * and returns 0 or a negative errno. */

/* Answer each `request` bytes on a stream socket with `reply` bytes until the peer closes it. */
int umdev_bench_echo_serve(int socket, uint32_t request, uint32_t reply);

/* Send `request`, wait for `reply_length` bytes; a batch is one round trip. */
int umdev_bench_round_trips(int socket, const void *request, uint32_t request_length, uint32_t reply_length,
                            uint32_t count, uint64_t *times);

/* A batch: send `post` `batch` times, one send each, then one `request` with its reply, so that all were served. */
int umdev_bench_posts(int socket, const void *post, uint32_t post_length, const void *request,
                      uint32_t request_length, uint32_t reply_length, uint32_t batch, uint32_t count, uint64_t *times);

/* Copies of `length` bytes (at most 4096) walk through `span` bytes: by memcpy, and by the core's dma_read. */
int umdev_bench_memcpy(const uint8_t *source, uint64_t span, uint32_t length, uint32_t batch, uint32_t count,
                       uint64_t *times);
int umdev_bench_dma_read(const umdev_api *api, umdev_memory *memory, uint64_t iova, uint64_t span, uint32_t length,
                         uint32_t batch, uint32_t count, uint64_t *times);

/* One map of the bare binary search. */
typedef struct umdev_bench_map {
    uint64_t iova;
    uint64_t size;
    uint8_t *host;
} umdev_bench_map;

/* Look up `addresses` in turn (their number a power of two): by binary search, and by the core in one reader section.
 * -EFAULT when an address is not found. */
int umdev_bench_search(const umdev_bench_map *maps, uint32_t maps_count, const uint64_t *addresses,
                       uint32_t addresses_count, uint32_t batch, uint32_t count, uint64_t *times);
int umdev_bench_lookup(const umdev_api *api, umdev_memory *memory, const uint64_t *addresses, uint32_t addresses_count,
                       uint32_t batch, uint32_t count, uint64_t *times);

/* Set `length` bytes, and copy them to where they do not overlap; a batch is one of these. Times are of the thread's
 * own clock, CLOCK_THREAD_CPUTIME_ID. */
int umdev_bench_fill_bytes(uint8_t *to, int byte, uint64_t length, uint32_t count, uint64_t *times);
int umdev_bench_copy_bytes(uint8_t *to, const uint8_t *from, uint64_t length, uint32_t count, uint64_t *times);

/* The bench device's C handler: a read returns how many accesses came before it, in this process. */
int umdev_bench_counter(void *device, const umdev_access *access, uint64_t *value);

/* The smallest machine: one processor in flat protected mode at the payload, which reads memory-mapped registers and
 * writes to a port now and then. A batch ends with each port write. */
typedef struct umdev_bench_kvm umdev_bench_kvm;
umdev_bench_kvm *umdev_bench_kvm_new(const void *payload, uint32_t length, int *error);
int umdev_bench_kvm_reads(umdev_bench_kvm *machine, uint32_t count, uint64_t *times);
void umdev_bench_kvm_free(umdev_bench_kvm *machine);
/* The same of umdev_kvm: a batch is one call of its run loop, which must end with what `kind` names. */
typedef struct umdev_kvm_vcpu umdev_kvm_vcpu;
typedef struct umdev_kvm_event umdev_kvm_event;
typedef int (*umdev_bench_kvm_run)(umdev_kvm_vcpu *vcpu, umdev_kvm_event *ret);
int umdev_bench_kvm_runs(umdev_bench_kvm_run run, umdev_kvm_vcpu *vcpu, umdev_kvm_event *event, int kind,
                         uint32_t count, uint64_t *times);

/* Memory of this process under a bare userfaultfd: the least that protection can cost. Asynchronous: no thread; the
 * kernel remembers stores, and a scan tells. Else a thread releases each page that is stored to. */
typedef struct umdev_bench_guard umdev_bench_guard;
umdev_bench_guard *umdev_bench_guard_new(uint32_t pages, int asynchronous, int *error);
void umdev_bench_guard_free(umdev_bench_guard *guard);
/* A batch protects all pages by one request. */
int umdev_bench_guard_arms(umdev_bench_guard *guard, uint32_t count, uint64_t *times);
/* A batch stores to each page once, all of them protected. */
int umdev_bench_guard_traps(umdev_bench_guard *guard, uint32_t count, uint64_t *times);
/* A batch scans all pages, each `stride`-th of them stored to since the last scan. */
int umdev_bench_guard_scans(umdev_bench_guard *guard, uint32_t stride, uint32_t count, uint64_t *times);

/* A client of the core's protector, and the core's functions for it. */
typedef struct umdev_protect_client umdev_protect_client;
typedef struct umdev_bench_client {
    umdev_protect_client *client;
    uint8_t *memory;
    const uint64_t *addresses; /* of its pages */
    uint64_t *found;           /* room for as many */
    uint32_t pages;
    int (*arm)(umdev_protect_client *client, const uint64_t *pages, uint32_t count, uint64_t *failed);
    int (*disarm)(umdev_protect_client *client, const uint64_t *pages, uint32_t count);
    uint64_t (*armed)(umdev_protect_client *client);
    int64_t (*collect)(umdev_protect_client *client, uint64_t *pages, uint64_t capacity);
} umdev_bench_client;
/* As umdev_bench_guard_arms and _scans do it; -EIO if not all pages were armed, or not all stores found. */
int umdev_bench_client_arms(const umdev_bench_client *client, uint32_t count, uint64_t *times);
int umdev_bench_client_scans(const umdev_bench_client *client, uint32_t stride, uint32_t count, uint64_t *times);

/* Store to each `stride`-th page; *time gets nanoseconds. */
int umdev_bench_store_pages(uint8_t *memory, uint32_t pages, uint32_t stride, uint64_t *time);
/* A umdev_page_notify: counts in *(uint64_t *)context. */
void umdev_bench_notified(void *context, uint64_t address);
