/* A device that is a few counters and 256 bytes, and a client that speaks plain bytes: the link alone is under test. */
#ifndef FAKE_H
#define FAKE_H

#include <assert.h>
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include "umdev.h"
#include "link.h"
#include "umdev_check.h"

enum { READ = 9, WRITE = 10, DMA_READ = 11, DMA_WRITE = 12, MULTI = 15, REPLY = 1, NO_REPLY = 0x10, FAILED = 0x20 };

typedef struct wire_header {
    uint16_t id, command;
    uint32_t size, flags, error;
} wire_header;

typedef struct wire_access {
    uint64_t offset;
    uint32_t region, count;
} wire_access;

extern umdev_api fake_api;
extern uint8_t fake_bytes[256];
extern atomic_int fake_reads, fake_writes, fake_posted;
/* Called by a write to offset 0x80, on the loop thread. */
extern void (*fake_doorbell)(uint32_t flags);
extern pthread_mutex_t fake_lock; /* the device lock: held for every access */

typedef struct served {
    umdev_link *link;
    int client;
    pthread_t thread;
    atomic_int control; /* messages that run handed up */
    atomic_int fds;     /* descriptors that came with them */
    atomic_int event;   /* how run ended */
    atomic_int ended;
    atomic_int silent;  /* leave control messages unanswered */
} served;

void serve_start(served *s);
void serve_connect(served *s); /* without a loop thread */
void serve_end(served *s);

void put(int fd, uint16_t id, uint16_t command, uint32_t flags, const void *payload, uint32_t length);
void put_fds(int fd, uint16_t id, uint16_t command, const void *payload, uint32_t length, const int *fds, int count);
/* Receives one message; its payload's length. */
uint32_t get(int fd, wire_header *header, void *payload, uint32_t room);
/* One access and its reply: the errno of the reply. */
uint32_t access_once(int fd, uint16_t command, uint32_t region, uint64_t offset, void *bytes, uint32_t count);

/* Fails when it does not happen within five seconds. */
void wait_until(atomic_int *value, int wanted);

void test_transfers(void); /* test_transfer.c */

#endif
