/* Drives i915 through its DRM interface: i915_drm CHECK [ARGUMENT]
 *
 * Buffers have addresses of our choosing, so batches need no relocations. Prints facts as name=value; the test knows which
 * values are right. Numbers of the interface: Linux, include/uapi/drm/i915_drm.h; commands: Intel Graphics PRM, Kaby Lake.
 */

#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

enum { RENDER = 1, VIDEO = 2, BLITTER = 3, ENHANCE = 4 };
enum { PAGE = 4096, SIDE = 256, SURFACE = SIDE * SIDE * 4, LOOP_LIMIT = 100000 };
#define BATCH_ADDRESS UINT64_C(0x10000000)
#define FIRST_ADDRESS UINT64_C(0x20000000)
#define SECOND_ADDRESS UINT64_C(0x30000000)

struct gem_create { uint64_t size; uint32_t handle, pad; };
struct gem_transfer { uint32_t handle, pad; uint64_t offset, size, data; };
struct gem_wait { uint32_t handle, flags; int64_t timeout; };
struct gem_mmap_gtt { uint32_t handle, pad; uint64_t offset; };
struct gem_close { uint32_t handle, pad; };
struct exec_object {
    uint32_t handle, relocation_count;
    uint64_t relocations, alignment, offset, flags, reserved1, reserved2;
};
struct execbuffer {
    uint64_t buffers;
    uint32_t count, start, length, dr1, dr4, cliprects;
    uint64_t cliprects_pointer, flags, context, reserved;
};

#define GEM_CLOSE _IOW('d', 0x09, struct gem_close)
#define GEM_CREATE _IOWR('d', 0x5b, struct gem_create)
#define GEM_PREAD _IOW('d', 0x5c, struct gem_transfer)
#define GEM_PWRITE _IOW('d', 0x5d, struct gem_transfer)
#define GEM_MMAP_GTT _IOWR('d', 0x64, struct gem_mmap_gtt)
#define EXECBUFFER2 _IOW('d', 0x69, struct execbuffer)
#define GEM_WAIT _IOWR('d', 0x6c, struct gem_wait)
#define OBJECT_WRITE (UINT64_C(1) << 2)
#define OBJECT_48BIT (UINT64_C(1) << 3)
#define OBJECT_PINNED (UINT64_C(1) << 4)
#define NO_RELOCATIONS (UINT64_C(1) << 11)

static int device;

static void need(int holds, const char *what)
{
    if (!holds) {
        perror(what);
        exit(1);
    }
}

static uint32_t create(uint64_t size)
{
    struct gem_create request = {.size = size};
    need(ioctl(device, GEM_CREATE, &request) == 0, "GEM_CREATE");
    return request.handle;
}

static void transfer(unsigned long number, uint32_t handle, uint64_t offset, void *data, uint64_t size)
{
    struct gem_transfer request = {.handle = handle, .offset = offset, .size = size, .data = (uintptr_t)data};
    need(ioctl(device, number, &request) == 0, number == GEM_PREAD ? "GEM_PREAD" : "GEM_PWRITE");
}

static int wait_for(uint32_t handle, int seconds)
{
    struct gem_wait request = {.handle = handle, .timeout = INT64_C(1000000000) * seconds};
    return ioctl(device, GEM_WAIT, &request) == 0 ? 0 : errno;
}

/* Buffers at addresses of our choosing, the batch last. Returns 0 or an errno. */
static int submit(int engine, struct exec_object *objects, uint32_t count, uint32_t length)
{
    struct execbuffer request = {
        .buffers = (uintptr_t)objects, .count = count, .length = length, .flags = (uint64_t)engine | NO_RELOCATIONS};
    return ioctl(device, EXECBUFFER2, &request) == 0 ? 0 : errno;
}

static struct exec_object object(uint32_t handle, uint64_t address, uint64_t more)
{
    return (struct exec_object){.handle = handle, .offset = address, .flags = OBJECT_PINNED | OBJECT_48BIT | more};
}

static uint32_t low(uint64_t address)
{
    return (uint32_t)address;
}

static uint32_t high(uint64_t address)
{
    return (uint32_t)(address >> 32);
}

static uint32_t *fill(uint32_t *at, uint64_t address, int x1, int y1, int x2, int y2, uint32_t colour)
{
    const uint32_t words[] = {0x54300005, 0x03F00000 | SIDE * 4, (uint32_t)(y1 << 16 | x1), (uint32_t)(y2 << 16 | x2),
                              low(address), high(address), colour};
    memcpy(at, words, sizeof words);
    return at + 7;
}

static uint32_t *copy(uint32_t *at, uint64_t to, int x1, int y1, int x2, int y2, uint64_t from, int x, int y)
{
    const uint32_t words[] = {0x54F00008, 0x03CC0000 | SIDE * 4, (uint32_t)(y1 << 16 | x1), (uint32_t)(y2 << 16 | x2),
                              low(to), high(to), (uint32_t)(y << 16 | x), SIDE * 4, low(from), high(from)};
    memcpy(at, words, sizeof words);
    return at + 10;
}

static uint32_t *store(uint32_t *at, uint64_t address, uint32_t value)
{
    const uint32_t words[] = {0x10000002, low(address), high(address), value};
    memcpy(at, words, sizeof words);
    return at + 4;
}

/* Ends a batch; returns its length, which the driver wants in multiples of 8 bytes. */
static uint32_t end(const uint32_t *words, uint32_t *at)
{
    *at++ = 0x05000000;
    if ((at - words) % 2)
        *at++ = 0;
    return (uint32_t)(at - words) * 4;
}

static void save(const char *path, const void *data, size_t size)
{
    int descriptor = open(path, O_CREAT | O_TRUNC | O_WRONLY, 0600);
    need(descriptor >= 0 && write(descriptor, data, size) == (ssize_t)size, path);
    close(descriptor);
}

/* A fill, rectangles on it, and a copy of a part to another surface; both surfaces go to a file. */
static void check_blit(const char *path)
{
    static uint32_t pixels[2 * SURFACE / 4];
    uint32_t words[64], *at = words;
    uint32_t first = create(SURFACE), second = create(SURFACE), batch = create(PAGE);
    at = fill(at, FIRST_ADDRESS, 0, 0, SIDE, SIDE, 0x11223344);
    at = fill(at, FIRST_ADDRESS, 32, 48, 160, 96, 0xFF8040C0);
    at = fill(at, SECOND_ADDRESS, 0, 0, SIDE, SIDE, 0x55667788);
    uint32_t length = end(words, copy(at, SECOND_ADDRESS, 100, 10, 228, 138, FIRST_ADDRESS, 16, 32));
    transfer(GEM_PWRITE, batch, 0, words, length);
    struct exec_object objects[] = {object(first, FIRST_ADDRESS, OBJECT_WRITE),
                                    object(second, SECOND_ADDRESS, OBJECT_WRITE), object(batch, BATCH_ADDRESS, 0)};
    printf("blit=%d\n", submit(BLITTER, objects, 3, length));
    printf("wait=%d\n", wait_for(second, 30));
    transfer(GEM_PREAD, first, 0, pixels, SURFACE);
    transfer(GEM_PREAD, second, 0, pixels + SURFACE / 4, SURFACE);
    save(path, pixels, sizeof pixels);
}

/* Stores by a batch on each engine. */
static void check_stores(void)
{
    static const struct { const char *name; int engine; } engines[] = {
        {"render", RENDER}, {"blitter", BLITTER}, {"video", VIDEO}, {"enhance", ENHANCE}};
    for (unsigned i = 0; i < 4; i++) {
        uint32_t words[16], values[2] = {0};
        uint32_t target = create(PAGE), batch = create(PAGE);
        uint32_t length = end(words, store(store(words, FIRST_ADDRESS, 0xC0FFEE00 + i), FIRST_ADDRESS + 4, ~i));
        transfer(GEM_PWRITE, batch, 0, words, length);
        struct exec_object objects[] = {object(target, FIRST_ADDRESS, OBJECT_WRITE), object(batch, BATCH_ADDRESS, 0)};
        int failed = submit(engines[i].engine, objects, 2, length);
        if (!failed)
            failed = wait_for(target, 30);
        transfer(GEM_PREAD, target, 0, values, sizeof values);
        printf("%s=%d %x %x\n", engines[i].name, failed, values[0], values[1]);
    }
}

static uint64_t microseconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000 + (uint64_t)now.tv_nsec / 1000;
}

static int ascending(const void *left, const void *right)
{
    uint32_t a = *(const uint32_t *)left, b = *(const uint32_t *)right;
    return (a > b) - (a < b);
}

/* Submissions one after the other, on two engines in turn: so many, or for so many seconds. */
static void check_loop(uint32_t count, uint32_t seconds)
{
    static uint32_t took[LOOP_LIMIT];
    uint32_t target = create(PAGE), failed = 0, wrong = 0, done = 0;
    uint32_t batches[2] = {create(PAGE), create(PAGE)};
    uint64_t begin = microseconds(), now = begin;
    while (done < count && (!seconds || now - begin < UINT64_C(1000000) * seconds)) {
        uint32_t words[8], value = 0, batch = batches[done % 2];
        uint32_t length = end(words, store(words, FIRST_ADDRESS, done));
        transfer(GEM_PWRITE, batch, 0, words, length);
        struct exec_object objects[] = {object(target, FIRST_ADDRESS, OBJECT_WRITE),
                                        object(batch, BATCH_ADDRESS + done % 2 * PAGE, 0)};
        failed += submit(done % 2 ? BLITTER : RENDER, objects, 2, length) != 0 || wait_for(target, 60) != 0;
        transfer(GEM_PREAD, target, 0, &value, sizeof value);
        wrong += value != done;
        uint64_t ended = microseconds();
        took[done++] = (uint32_t)(ended - now);
        now = ended;
    }
    need(done > 0, "a loop of none");
    qsort(took, done, sizeof *took, ascending);
    printf("submitted=%u\nfailed=%u\nwrong=%u\n", done, failed, wrong);
    printf("microseconds=%llu\np50=%u\np99=%u\nmost=%u\n", (unsigned long long)(now - begin), took[done / 2],
           took[done - 1 - done / 100], took[done - 1]);
}

/* A batch that jumps to itself: the driver resets the engine, and the wait ends. */
static void check_hang(void)
{
    uint32_t batch = create(PAGE);
    const uint32_t words[] = {0x18800101, low(BATCH_ADDRESS), high(BATCH_ADDRESS), 0x05000000};
    transfer(GEM_PWRITE, batch, 0, (void *)(uintptr_t)words, sizeof words);
    struct exec_object objects[] = {object(batch, BATCH_ADDRESS, 0)};
    printf("hang=%d\n", submit(RENDER, objects, 1, sizeof words));
    printf("released=%d\n", wait_for(batch, 120));
}

/* The aperture: stores and loads of the processor through the global table. */
static void check_aperture(void)
{
    uint32_t buffer = create(PAGE), values[64] = {0}, wrong = 0;
    struct gem_mmap_gtt request = {.handle = buffer};
    need(ioctl(device, GEM_MMAP_GTT, &request) == 0, "GEM_MMAP_GTT");
    volatile uint32_t *view = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, device, (off_t)request.offset);
    need(view != MAP_FAILED, "mmap");
    for (uint32_t i = 0; i < 64; i++)
        view[i] = i * 2654435761u;
    for (uint32_t i = 0; i < 64; i++)
        wrong += view[i] != i * 2654435761u;
    transfer(GEM_PREAD, buffer, 0, values, sizeof values);
    for (uint32_t i = 0; i < 64; i++)
        wrong += values[i] != i * 2654435761u;
    printf("aperture-wrong=%u\n", wrong);
}

int main(int count, char **words)
{
    need(count >= 2, "usage: i915_drm blit FILE | stores | loop COUNT | rate SECONDS | hang | aperture");
    device = open("/dev/dri/renderD128", O_RDWR | O_CLOEXEC);
    need(device >= 0, "/dev/dri/renderD128");
    if (strcmp(words[1], "blit") == 0 && count > 2)
        check_blit(words[2]);
    else if (strcmp(words[1], "stores") == 0)
        check_stores();
    else if (strcmp(words[1], "loop") == 0 && count > 2)
        check_loop(atoi(words[2]) < LOOP_LIMIT ? (uint32_t)atoi(words[2]) : LOOP_LIMIT, 0);
    else if (strcmp(words[1], "rate") == 0 && count > 2)
        check_loop(LOOP_LIMIT, (uint32_t)atoi(words[2]));
    else if (strcmp(words[1], "hang") == 0)
        check_hang();
    else if (strcmp(words[1], "aperture") == 0)
        check_aperture();
    else
        need(0, words[1]);
    return 0;
}
