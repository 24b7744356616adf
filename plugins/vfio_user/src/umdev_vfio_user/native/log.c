/* The wire log: one line per message, for people and tests. */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <string.h>
#include <unistd.h>

#include "link.h"

static const char *access_name(uint16_t command)
{
    switch (command) {
    case LINK_COMMAND_REGION_READ:
        return "REGION_READ";
    case LINK_COMMAND_REGION_WRITE:
        return "REGION_WRITE";
    default:
        return "REGION_WRITE_MULTI";
    }
}

void link_log_access(umdev_link *link, const link_header *header, const link_region_access *access,
                     const uint8_t *bytes, int error)
{
    enum { SHOWN = 16 };
    char text[2 * SHOWN + 4] = "";
    if (bytes) {
        uint32_t shown = access->count < SHOWN ? access->count : SHOWN;
        for (uint32_t i = 0; i < shown; i++)
            snprintf(text + 2 * i, 3, "%02x", bytes[i]);
        if (shown < access->count)
            memcpy(text + 2 * shown, "...", 4);
    }
    pthread_mutex_lock(&link->log_mutex);
    if (link->log) {
        fprintf(link->log, "%s id=%u region=%" PRIu32 " offset=0x%" PRIx64 " count=%" PRIu32,
                access_name(header->command), header->id, access->region, access->offset, access->count);
        if (error)
            fprintf(link->log, " error=%d", error);
        else
            fprintf(link->log, " data=%s", text);
        fputs(header->flags & LINK_FLAG_NO_REPLY ? " no-reply\n" : "\n", link->log);
    }
    pthread_mutex_unlock(&link->log_mutex);
}

void link_log_transfer(umdev_link *link, const link_header *header, uint64_t iova, uint32_t count, int status)
{
    pthread_mutex_lock(&link->log_mutex);
    if (link->log) {
        fprintf(link->log, "%s id=%u address=0x%" PRIx64 " count=%" PRIu32,
                header->command == LINK_COMMAND_DMA_READ ? "DMA_READ" : "DMA_WRITE", header->id, iova, count);
        if (status)
            fprintf(link->log, " error=%d", -status);
        fputc('\n', link->log);
    }
    pthread_mutex_unlock(&link->log_mutex);
}

void umdev_link_log(umdev_link *link, const char *text)
{
    pthread_mutex_lock(&link->log_mutex);
    if (link->log)
        fprintf(link->log, "%s\n", text);
    pthread_mutex_unlock(&link->log_mutex);
}

void link_log_flush(umdev_link *link)
{
    pthread_mutex_lock(&link->log_mutex);
    if (link->log)
        fflush(link->log);
    pthread_mutex_unlock(&link->log_mutex);
}

void link_log_close(umdev_link *link)
{
    pthread_mutex_lock(&link->log_mutex);
    if (link->log)
        fclose(link->log);
    link->log = NULL;
    atomic_store(&link->logging, 0);
    pthread_mutex_unlock(&link->log_mutex);
}

int umdev_link_set_log(umdev_link *link, int fd)
{
    link_log_close(link);
    if (fd < 0)
        return 0;
    int copy = fcntl(fd, F_DUPFD_CLOEXEC, 0);
    if (copy < 0)
        return -errno;
    FILE *log = fdopen(copy, "a");
    if (!log) {
        int error = errno;
        close(copy);
        return -error;
    }
    pthread_mutex_lock(&link->log_mutex);
    link->log = log;
    atomic_store(&link->logging, 1);
    pthread_mutex_unlock(&link->log_mutex);
    return 0;
}
