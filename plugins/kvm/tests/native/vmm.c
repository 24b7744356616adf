/* A VMM in little: maps the file that it inherits, and stores to it as its standard input says.
 * One command a line, one answer a line. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>
#include <linux/userfaultfd.h>

enum { PAGE = 4096 };

static volatile uint32_t *memory;
static size_t size;
static int file; /* the memory's */

struct storm {
    unsigned thread, pages, stores;
};

/* Every thread has a word of its own in each page and counts there: what it has stored is known at the end. */
static void *run_storm(void *argument)
{
    const struct storm *storm = argument;
    uint32_t random = storm->thread * 2654435761u + 1;
    for (unsigned i = 0; i < storm->stores; i++) {
        random = random * 1664525u + 1013904223u;
        memory[(size_t)(random >> 8) % storm->pages * (PAGE / 4) + storm->thread] += 1;
    }
    return NULL;
}

static void storm(unsigned threads, unsigned pages, unsigned stores)
{
    pthread_t ids[8];
    struct storm storms[8];
    for (unsigned i = 0; i < threads && i < 8; i++) {
        storms[i] = (struct storm){i, pages, stores};
        pthread_create(&ids[i], NULL, run_storm, &storms[i]);
    }
    for (unsigned i = 0; i < threads && i < 8; i++)
        pthread_join(ids[i], NULL);
}

static void *run_store(void *argument)
{
    const uint64_t *store = argument;
    memory[store[0] / 4] = (uint32_t)store[1];
    return NULL;
}

/* Stores that may wait, 16 at a time; `finish` waits for them. */
static pthread_t begun[16];
static unsigned begun_count;

static void begin(uint64_t address, uint64_t value)
{
    static uint64_t stores[16][2];
    uint64_t *store = stores[begun_count];
    store[0] = address;
    store[1] = value;
    pthread_create(&begun[begun_count++], NULL, run_store, store);
}

static void finish(void)
{
    while (begun_count)
        pthread_join(begun[--begun_count], NULL);
}

static void map(void)
{
    memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
}

static void take_userfault(void)
{
    struct uffdio_api api = {.api = UFFD_API, .features = UFFD_FEATURE_PAGEFAULT_FLAG_WP};
    struct uffdio_register whole = {.range = {(uintptr_t)memory, size}, .mode = UFFDIO_REGISTER_MODE_MISSING};
    int userfault = (int)syscall(SYS_userfaultfd, O_CLOEXEC);
    if (userfault < 0 || ioctl(userfault, UFFDIO_API, &api) || ioctl(userfault, UFFDIO_REGISTER, &whole))
        abort();
}

int main(int count, char **arguments)
{
    file = count > 1 ? atoi(arguments[1]) : -1;
    size = count > 2 ? strtoul(arguments[2], NULL, 0) : 0;
    if (count > 3 && !strcmp(arguments[3], "daemonize") && fork() > 0)
        _exit(0);
    map();
    puts("ready");
    fflush(stdout);
    char line[128];
    while (fgets(line, sizeof(line), stdin)) {
        unsigned long a, b, c;
        uint64_t answer = 0;
        if (sscanf(line, "store %lu %lu", &a, &b) == 2)
            memory[a / 4] = (uint32_t)b;
        else if (sscanf(line, "begin %lu %lu", &a, &b) == 2 && begun_count < 16)
            begin(a, b);
        else if (!strncmp(line, "finish", 6))
            finish();
        else if (sscanf(line, "load %lu", &a) == 1)
            answer = memory[a / 4];
        else if (sscanf(line, "storm %lu %lu %lu", &a, &b, &c) == 3)
            storm((unsigned)a, (unsigned)b, (unsigned)c);
        else if (sscanf(line, "discard %lu", &a) == 1)
            madvise((void *)(uintptr_t)(memory + a / 4), PAGE, MADV_REMOVE);
        else if (sscanf(line, "plug %lu", &a) == 1) { /* the file has grown: all of it, anywhere else */
            size = a;
            map();
        } else if (!strncmp(line, "remap", 5)) {
            munmap((void *)(uintptr_t)memory, size);
            mmap(NULL, 1 << 16, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0); /* so that it comes to lie elsewhere */
            map();
        } else if (!strncmp(line, "userfault", 9))
            take_userfault();
        printf("%" PRIu64 "\n", answer);
        fflush(stdout);
    }
}
