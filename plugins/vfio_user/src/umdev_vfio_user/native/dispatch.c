/* The messages that C serves by itself: REGION_READ, REGION_WRITE and REGION_WRITE_MULTI. */
#include <errno.h>
#include <string.h>

#include "link.h"

enum {
    ACCESS = sizeof(link_region_access), /* 16 */
    MULTI_COUNT = 8,
    MULTI_ENTRY = 24,
    MULTI_DATA = 8
};

static int answer(umdev_link *link, const link_header *request, uint32_t payload, int error)
{
    if (request->flags & LINK_FLAG_NO_REPLY)
        return 1;
    link_header reply = *request;
    reply.flags = LINK_FLAG_REPLY | (error ? LINK_FLAG_ERROR : 0u);
    reply.error = (uint32_t)error;
    reply.size = LINK_HEADER + (error ? 0 : payload);
    memcpy(link->reply, &reply, sizeof(reply));
    int status = link_send_bytes(link, link->reply, reply.size, NULL, 0);
    return status < 0 ? status : 1;
}

/* 0 or the errno of the answer. Every number in `access` is the client's. */
static int check(const umdev_link *link, const link_region_access *access, uint32_t needed)
{
    if (access->region >= UMDEV_REGION_COUNT)
        return EINVAL;
    const link_region *region = &link->regions[access->region];
    if (access->count > UMDEV_LINK_MAX_TRANSFER)
        return E2BIG;
    if (access->offset > region->size || access->count > region->size - access->offset)
        return EINVAL;
    return (region->flags & needed) == needed ? 0 : EINVAL;
}

static int serve_read(umdev_link *link, const uint8_t *frame, const link_header *header)
{
    link_region_access access;
    if (header->size != LINK_HEADER + ACCESS)
        return answer(link, header, 0, EINVAL);
    memcpy(&access, frame + LINK_HEADER, ACCESS);
    int error = check(link, &access, UMDEV_LINK_READABLE);
    uint8_t *bytes = link->reply + LINK_HEADER + ACCESS;
    if (!error && access.count) {
        /* A value is always defined, whatever the access came to. */
        link->api->access(link->device, access.region, access.offset, bytes, access.count, 0, 0, 0);
    }
    memcpy(link->reply + LINK_HEADER, &access, ACCESS);
    int status = answer(link, header, ACCESS + access.count, error);
    if (atomic_load_explicit(&link->logging, memory_order_relaxed))
        link_log_access(link, header, &access, error ? NULL : bytes, error);
    return status;
}

static void store(umdev_link *link, const link_region_access *access, const uint8_t *data, uint32_t flags)
{
    /* access() takes bytes that a read would fill; a write leaves them alone. */
    if (access->count)
        link->api->access(link->device, access->region, access->offset, (void *)(uintptr_t)data, access->count,
                          UMDEV_WRITE | flags, 0, 0);
}

static int serve_write(umdev_link *link, const uint8_t *frame, const link_header *header)
{
    link_region_access access;
    if (header->size < LINK_HEADER + ACCESS)
        return answer(link, header, 0, EINVAL);
    memcpy(&access, frame + LINK_HEADER, ACCESS);
    const uint8_t *data = frame + LINK_HEADER + ACCESS;
    int error = header->size - LINK_HEADER - ACCESS != access.count ? EINVAL
                                                                   : check(link, &access, UMDEV_LINK_WRITABLE);
    if (atomic_load_explicit(&link->logging, memory_order_relaxed))
        link_log_access(link, header, &access, error ? NULL : data, error);
    if (error)
        return answer(link, header, 0, error);
    memcpy(link->reply + LINK_HEADER, &access, ACCESS);
    if (header->flags & LINK_FLAG_NO_REPLY) {
        store(link, &access, data, UMDEV_POSTED);
        return 1;
    }
    store(link, &access, data, 0);
    return answer(link, header, ACCESS, 0);
}

static int serve_multi(umdev_link *link, const uint8_t *frame, const link_header *header)
{
    uint64_t count;
    if (header->size < LINK_HEADER + MULTI_COUNT)
        return answer(link, header, 0, EINVAL);
    memcpy(&count, frame + LINK_HEADER, sizeof(count));
    uint32_t rest = header->size - LINK_HEADER - MULTI_COUNT;
    if (rest % MULTI_ENTRY || count != rest / MULTI_ENTRY)
        return answer(link, header, 0, EINVAL);
    const uint8_t *entries = frame + LINK_HEADER + MULTI_COUNT;
    int logging = atomic_load_explicit(&link->logging, memory_order_relaxed);
    link_region_access access;
    /* All or nothing: a batch with a wrong entry changes no register. */
    for (uint64_t i = 0; i < count; i++) {
        memcpy(&access, entries + i * MULTI_ENTRY, ACCESS);
        int error = access.count > MULTI_DATA ? EINVAL : check(link, &access, UMDEV_LINK_WRITABLE);
        if (error) {
            if (logging)
                link_log_access(link, header, &access, NULL, error);
            return answer(link, header, 0, error);
        }
    }
    uint32_t flags = header->flags & LINK_FLAG_NO_REPLY ? UMDEV_POSTED : 0;
    for (uint64_t i = 0; i < count; i++) {
        const uint8_t *entry = entries + i * MULTI_ENTRY;
        memcpy(&access, entry, ACCESS);
        if (logging)
            link_log_access(link, header, &access, entry + ACCESS, 0);
        store(link, &access, entry + ACCESS, flags);
    }
    memcpy(link->reply + LINK_HEADER, &count, sizeof(count));
    return answer(link, header, MULTI_COUNT, 0);
}

int link_dispatch(umdev_link *link, const uint8_t *frame, const link_header *header)
{
    if (!link->ready)
        return 0;
    switch (header->command) {
    case LINK_COMMAND_REGION_READ:
        return serve_read(link, frame, header);
    case LINK_COMMAND_REGION_WRITE:
        return serve_write(link, frame, header);
    case LINK_COMMAND_WRITE_MULTI:
        return serve_multi(link, frame, header);
    default:
        return 0;
    }
}
