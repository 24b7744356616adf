/* In a guest: stores to pages whose physical addresses it tells, and keeps a log of what it has stored.
 *
 * stores PAGES: prints one physical address a line, then "ready", then does what comes through /stores.in:
 *   storm THREADS STORES   random increments; every thread has a word of its own in each page
 *   store PAGE VALUE       the page's last word
 *   check                  compares memory with the log, and prints what the log says of every page and thread
 * Every answer ends with a line "done", written to /stores.out. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

enum { PAGE = 4096, WORDS = PAGE / 4, THREADS = 4 };

static volatile uint32_t *memory;
static unsigned pages;
static uint32_t *logs[THREADS];
static uint32_t *last;

struct storm {
    unsigned thread, stores;
};

static void *run_storm(void *argument)
{
    const struct storm *storm = argument;
    static uint32_t seeds[THREADS];
    uint32_t random = seeds[storm->thread] + storm->thread * 2654435761u + 1;
    for (unsigned i = 0; i < storm->stores; i++) {
        random = random * 1664525u + 1013904223u;
        unsigned page = (random >> 8) % pages;
        logs[storm->thread][page]++;
        memory[page * WORDS + storm->thread] = logs[storm->thread][page];
    }
    seeds[storm->thread] = random;
    return NULL;
}

static uint64_t physical(const volatile void *address)
{
    uint64_t entry = 0;
    int file = open("/proc/self/pagemap", O_RDONLY);
    if (file < 0 || pread(file, &entry, 8, (off_t)((uintptr_t)address / PAGE * 8)) != 8)
        exit(1);
    close(file);
    return (entry & (((uint64_t)1 << 55) - 1)) * PAGE;
}

static void answer(FILE *out, const char *line)
{
    unsigned a, b;
    if (sscanf(line, "storm %u %u", &a, &b) == 2 && a <= THREADS) {
        pthread_t ids[THREADS];
        struct storm storms[THREADS];
        for (unsigned i = 0; i < a; i++) {
            storms[i] = (struct storm){i, b};
            pthread_create(&ids[i], NULL, run_storm, &storms[i]);
        }
        for (unsigned i = 0; i < a; i++)
            pthread_join(ids[i], NULL);
    } else if (sscanf(line, "store %u %u", &a, &b) == 2 && a < pages) {
        last[a] = b;
        memory[a * WORDS + WORDS - 1] = b;
    } else if (!strncmp(line, "check", 5)) {
        unsigned different = 0;
        for (unsigned page = 0; page < pages; page++) {
            different += memory[page * WORDS + WORDS - 1] != last[page];
            for (unsigned thread = 0; thread < THREADS; thread++)
                different += memory[page * WORDS + thread] != logs[thread][page];
        }
        fprintf(out, "different %u\n", different);
        for (unsigned page = 0; page < pages; page++)
            fprintf(out, "%u %u %u %u %u\n", logs[0][page], logs[1][page], logs[2][page], logs[3][page], last[page]);
    }
    fprintf(out, "done\n");
}

int main(int count, char **arguments)
{
    pages = count > 1 ? (unsigned)atoi(arguments[1]) : 1;
    memory = mmap(NULL, (size_t)pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    madvise((void *)(uintptr_t)memory, (size_t)pages * PAGE, MADV_NOHUGEPAGE);
    memset((void *)(uintptr_t)memory, 0, (size_t)pages * PAGE);
    if (mlockall(MCL_CURRENT))
        return 1;
    for (unsigned thread = 0; thread < THREADS; thread++)
        logs[thread] = calloc(pages, sizeof(uint32_t));
    last = calloc(pages, sizeof(uint32_t));
    mkfifo("/stores.in", 0600);
    mkfifo("/stores.out", 0600);
    for (unsigned page = 0; page < pages; page++)
        printf("%" PRIx64 "\n", physical(memory + page * WORDS));
    printf("ready\n");
    fflush(stdout);
    for (;;) {
        char line[128];
        FILE *in = fopen("/stores.in", "r");
        if (!in)
            return 1;
        while (fgets(line, sizeof(line), in)) {
            FILE *out = fopen("/stores.out", "w");
            answer(out, line);
            fclose(out);
        }
        fclose(in);
    }
}
