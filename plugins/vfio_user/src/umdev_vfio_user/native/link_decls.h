/* The server's end of a vfio-user connection, without a directive: cffi reads this too.
 * A link lives as long as the device is served; clients come and go on it.
 *
 * Threads: `run`, `send`, `connect` and `disconnect` belong to one thread, the loop. `transfer`, `cancel`, `log` and
 * `stop` may be called from any thread. Functions return 0 or a negative errno unless they say otherwise.
 */
typedef struct umdev_link umdev_link;

enum umdev_link_limit {
    UMDEV_LINK_MAX_FDS = 16,           /* descriptors in one message */
    UMDEV_LINK_MAX_TRANSFER = 1048576, /* bytes of data in one message */
    UMDEV_LINK_MAX_MESSAGE = 1052672   /* bytes of a whole message: data, headers and room for long requests */
};

/* Why `run` came back. */
enum umdev_link_event {
    UMDEV_LINK_MESSAGE = 1,     /* a message that C does not serve: answer it and call again */
    UMDEV_LINK_STOPPED = 2,     /* by umdev_link_stop */
    UMDEV_LINK_CLOSED = 3,      /* the peer is gone */
    UMDEV_LINK_BROKEN = 4,      /* the peer broke the protocol, message->error says how (errno) */
    UMDEV_LINK_INTERRUPTED = 5  /* by a signal, or a slice is over: run signal handlers and call again */
};

enum umdev_link_region_flag {
    UMDEV_LINK_READABLE = 1,
    UMDEV_LINK_WRITABLE = 2
};

/* How the client lays out DMA_READ and DMA_WRITE: the specification has a 64-bit count and data at offset 32,
 * QEMU 10.1 a 32-bit count and data at offset 28. QEMU 11.1.3 does as specified. */
enum umdev_link_layout {
    UMDEV_LINK_UNKNOWN = 0,
    UMDEV_LINK_SPECIFIED = 1,
    UMDEV_LINK_QEMU = 2
};

typedef struct umdev_link_message {
    uint16_t id;
    uint16_t command;
    uint32_t flags;
    int32_t error;
    uint32_t length;        /* of the payload */
    const uint8_t *payload; /* valid until the next call of run or disconnect */
    uint32_t fd_count;
    int32_t fds[16];        /* the caller's from now on */
} umdev_link_message;

/* NULL when memory is short or the ABI does not fit. */
umdev_link *umdev_link_new(const umdev_api *api, umdev_device *device);
/* Only when no thread can be in `transfer` any more. */
void umdev_link_free(umdev_link *link);

int umdev_link_set_region(umdev_link *link, uint32_t index, uint64_t size, uint32_t flags);
/* One line per message to this descriptor (dup'ed); -1 ends it. */
int umdev_link_set_log(umdev_link *link, int fd);
void umdev_link_log(umdev_link *link, const char *text);

/* Serve a connected stream socket, whose descriptor is the link's from now on. */
int umdev_link_connect(umdev_link *link, int fd);
/* Ends every transfer with -ENOTCONN, waits until the last is out, closes the socket and queued descriptors. */
void umdev_link_disconnect(umdev_link *link);
/* Negotiation is over: serve accesses in C. `max_transfer` is what the client takes in one message. */
void umdev_link_set_ready(umdev_link *link, uint32_t max_transfer);
void umdev_link_set_reply_timeout(umdev_link *link, uint32_t milliseconds);
int umdev_link_layout(umdev_link *link);

/* For the loop, after connect: `run` comes back at least this often (0: only when something happens), between two reads
 * of the socket. Python runs signal handlers only then, and a signal that comes while C waits for nothing wakes
 * nobody. */
void umdev_link_set_slice(umdev_link *link, uint32_t milliseconds);
int umdev_link_run(umdev_link *link, umdev_link_message *message);
/* `run` returns UMDEV_LINK_STOPPED, now and ever after. */
void umdev_link_stop(umdev_link *link);
/* A whole message, with descriptors (at most UMDEV_LINK_MAX_FDS). */
int umdev_link_send(umdev_link *link, const uint8_t *bytes, uint32_t length, const int32_t *fds, uint32_t fd_count);

/* An umdev_message_transfer: DMA to the client by DMA_READ and DMA_WRITE messages. `context` is the link. Any thread
 * but the loop's (-EDEADLK): a client may answer only when its own request is answered, as QEMU does
 * (hw/vfio-user/proxy.c waits with the big lock held, which the answer to a DMA_READ needs). -ENOTCONN, -ETIMEDOUT,
 * -ENOBUFS, -ECANCELED or what the client answered. */
int umdev_link_transfer(void *context, uint64_t iova, void *bytes, uint64_t length, int write);
/* An umdev_message_cancel. A DMA_WRITE that was sent already is the client's to carry out or not; its reply is
 * dropped. */
void umdev_link_cancel(void *context, int cancelled);
/* Their addresses, for the core's table. */
uintptr_t umdev_link_transfer_address(void);
uintptr_t umdev_link_cancel_address(void);
