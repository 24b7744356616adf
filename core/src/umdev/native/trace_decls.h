/* trace: internal declarations of the core; no directives, cffi reads this too.
 * One ring of records per thread, in a sealed memfd that any process may map. Off, an access pays one branch.
 */

/* One access by the driver; or, with region 0xFFFF, something that the device does by itself: `initiator` is then the
 * number of its name, which the model knows, and `offset` an address of the model's choice. 64 bytes. A reader copies a
 * record and keeps it only if `sequence` is the one it expects both before and after: it is 0 while the record is being
 * written. */
typedef struct umdev_trace_record {
    uint64_t sequence; /* 1 is the thread's first; the record of n lies at index (n - 1) % capacity */
    uint64_t time;     /* ns of CLOCK_MONOTONIC when the access began */
    uint64_t offset;   /* in the region */
    uint64_t value;    /* the first 8 bytes written or read, little-endian */
    uint64_t duration; /* ns */
    uint32_t device;   /* umdev_device_id */
    uint32_t length;   /* bytes of the access */
    uint32_t initiator;
    uint32_t space;
    uint16_t region;
    uint16_t flags;    /* enum umdev_access_flag */
    int32_t result;    /* enum umdev_result, or a negative errno */
} umdev_trace_record;

/* The start of a ring's memfd. */
typedef struct umdev_trace_header {
    umdev_header header;
    char magic[8];         /* "UMDEVTRC" */
    uint32_t first;        /* bytes from the start of the file to record 0 */
    uint32_t record_size;  /* bytes */
    uint64_t capacity;     /* records, a power of two */
    uint64_t head;         /* records ever written; the writer's last store of a record */
    uint64_t lost;         /* of those, overwritten */
    uint32_t process;
    uint32_t thread;
    char fields[256];      /* name:code of each member of a record in order; codes as in Python's struct module */
} umdev_trace_header;

/* Turns tracing on for the whole process: rings of at least `capacity` records (rounded up to a power of two).
 * Rings of an earlier trace are dropped. 0, -EBUSY when on, -EINVAL for 0 or more than 2^24 records. */
int umdev_trace_start(uint64_t capacity);
/* Off; the rings stay until the next start or umdev_trace_drop. */
void umdev_trace_stop(void);
void umdev_trace_drop(void);
int umdev_trace_enabled(void);
const int *umdev_trace_flag(void); /* what umdev_trace_enabled returns, to be looked at without a call */
/* Copies at most `capacity` ring descriptors and returns how many there are. They stay the core's: dup to keep. */
uint32_t umdev_trace_rings(int *descriptors, uint32_t capacity);
uint64_t umdev_trace_dropped(void); /* records for which there was no ring (256 threads, or no memory) */
/* Adds a record to the calling thread's ring; the sequence is filled in. Never blocks but for a thread's first. */
void umdev_trace_add(const umdev_trace_record *record);
