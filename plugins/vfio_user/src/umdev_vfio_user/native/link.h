/* What the C files of the link share. */
#ifndef UMDEV_LINK_H
#define UMDEV_LINK_H

#include <pthread.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "umdev.h"
#include "link_decls.h"

enum {
    LINK_HEADER = 16,
    LINK_MAX_QUEUED_FDS = 256, /* of messages that wait for their turn; nobody receives when one more may not fit */
    LINK_DMA_CHUNK = 65536,    /* fits a socket's default buffer, so that a request never waits half sent */
    LINK_CAPACITY = 2 * UMDEV_LINK_MAX_MESSAGE + 65536,
    LINK_SEND_TIMEOUT_MS = 5000
};

/* Message header and commands: vfio-user specification, "Header" and "Commands". */
typedef struct link_header {
    uint16_t id;
    uint16_t command;
    uint32_t size;
    uint32_t flags;
    uint32_t error;
} link_header;

enum {
    LINK_COMMAND_REGION_READ = 9,
    LINK_COMMAND_REGION_WRITE = 10,
    LINK_COMMAND_DMA_READ = 11,
    LINK_COMMAND_DMA_WRITE = 12,
    LINK_COMMAND_WRITE_MULTI = 15
};

enum {
    LINK_FLAG_TYPE = 0xf,
    LINK_FLAG_REPLY = 0x1,
    LINK_FLAG_NO_REPLY = 0x10,
    LINK_FLAG_ERROR = 0x20
};

/* Payload of REGION_READ, REGION_WRITE and one entry of WRITE_MULTI. */
typedef struct link_region_access {
    uint64_t offset;
    uint32_t region;
    uint32_t count;
} link_region_access;

typedef struct link_region {
    uint64_t size;
    uint32_t flags;
} link_region;

enum link_state {
    LINK_IDLE,  /* no client */
    LINK_OPEN,
    LINK_ENDED, /* end of file or a dead socket */
    LINK_BROKEN
};

/* The one DMA request that is under way. */
typedef struct link_request {
    int busy;       /* a thread owns it */
    int answered;
    int result;     /* 0 or a negative errno, once answered */
    uint16_t id;
    uint16_t command;
    uint8_t *into;  /* where a DMA_READ's data goes */
    uint32_t count;
    uint32_t reply_size;
} link_request;

struct umdev_link {
    const umdev_api *api;
    umdev_device *device;
    link_region regions[UMDEV_REGION_COUNT];
    pthread_mutex_t mutex; /* guards what follows, up to `head` */
    pthread_cond_t changed;
    enum link_state state;
    int error;
    int fd;
    uint32_t users;     /* threads inside transfer */
    uint32_t waiting;   /* threads that wait for `changed` */
    int receiving;      /* a thread reads the socket into the buffer behind `tail` */
    link_request request;
    uint16_t next_id;
    int layout;
    uint32_t max_transfer;
    uint32_t reply_timeout_ms;
    uint32_t send_timeout_ms; /* for a whole message, however the client reads it; never changes while it is used */
    int cancelled;      /* transfers end at once */
    int wake;           /* an eventfd, readable while they do */
    /* Received bytes: [head, scan) whole commands, [scan, tail) not looked at yet. Replies are taken out at once. */
    uint8_t *buffer;
    size_t scan;
    size_t tail;
    uint32_t fd_count;
    int fds[LINK_MAX_QUEUED_FDS];
    size_t fd_at[LINK_MAX_QUEUED_FDS]; /* where the last byte stood that came with it */
    /* The loop thread's own. */
    size_t head;
    size_t current; /* bytes of the message that the caller of run is answering */
    int ready;
    uint32_t posted; /* not 0: the last message asked for no reply */
    uint32_t slice_ms;
    uint8_t *reply;
    _Atomic(const void *) loop; /* identity of the loop thread, while it serves a client */
    atomic_int stopping;
    pthread_mutex_t sending; /* whole messages go out one after the other */
    atomic_int logging;
    pthread_mutex_t log_mutex;
    FILE *log;
};

/* receive.c */
/* Reads once from the socket, with `receiving` set and no lock held: bytes read, 0 at the end, or a negative errno. */
typedef struct link_received {
    long count;
    uint32_t fd_count;
    int fds[UMDEV_LINK_MAX_FDS];
} link_received;
int link_receive(umdev_link *link, int flags, link_received *received);
/* With the mutex: account for what link_receive brought, find whole messages, deliver replies. */
void link_absorb(umdev_link *link, int status, const link_received *received);
/* With the mutex: hand the descriptors of the message at [start, end) over; returns how many. */
uint32_t link_take_fds(umdev_link *link, size_t start, size_t end, int32_t *fds);
void link_close_fds(umdev_link *link, size_t start, size_t end);
void link_broken(umdev_link *link, int error);
/* With the mutex, by the loop thread while nobody receives: move what is left to the front of the buffer. */
void link_compact(umdev_link *link);
void link_wake(umdev_link *link);

/* Names the calling thread. */
const void *link_self(void);

/* transfer.c */
/* With the mutex: a whole reply has come. */
void link_reply(umdev_link *link, const uint8_t *frame, const link_header *header);

/* dispatch.c */
/* 1: served; 0: not for C; negative errno: the socket is dead. */
int link_dispatch(umdev_link *link, const uint8_t *frame, const link_header *header);

/* log.c */
void link_log_access(umdev_link *link, const link_header *header, const link_region_access *access,
                     const uint8_t *bytes, int result);
void link_log_transfer(umdev_link *link, const link_header *header, uint64_t iova, uint32_t count, int status);
void link_log_flush(umdev_link *link);
void link_log_close(umdev_link *link);

/* link.c */
/* 0, -ENOTCONN, -ETIMEDOUT, or another negative errno. After half a message the connection is shut down. */
int link_send_bytes(umdev_link *link, const uint8_t *bytes, size_t length, const int32_t *fds, uint32_t fd_count);

#endif
