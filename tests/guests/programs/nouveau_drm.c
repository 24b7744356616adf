/* Drives nouveau through its DRM interface: nouveau_drm CHECK [ARGUMENT]
 *
 * Prints facts as name=value; the test knows which values are right. Numbers of the interface: Linux,
 * include/uapi/drm/nouveau_drm.h; methods: NVIDIA, open-gpu-doc (classes cla16f.h and clb0b5.h).
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

enum { PAGE = 4096, BYTES = 64 * 1024, PUSH_BYTES = 2 * PAGE, ENGINE_GRAPHICS = 1, ENGINE_COPY = 0x30, COPY_CLASS = 0xB0B5 };
enum { MIB = 1 << 20, VRAM = 1 << 1, GART = 1 << 2, MAPPABLE = 1 << 3 };
#define UNMAPPED UINT64_C(0x7f000000)
#define KERNEL_FIRST (UINT64_C(1) << 39)
#define KERNEL_BYTES (UINT64_C(1) << 38)
#define FROM_AT UINT64_C(0x10000000)
#define VIDEO_AT UINT64_C(0x20000000)
#define TO_AT UINT64_C(0x30000000)
#define PUSH_AT UINT64_C(0x40000000)

struct channel_alloc {
    uint32_t fb_handle, engine;
    int32_t channel;
    uint32_t push_domains, notifier;
    struct { uint32_t handle, class; } subchannels[8];
    uint32_t count;
};
struct gem_info { uint32_t handle, domain; uint64_t size, offset, map_handle; uint32_t tile_mode, tile_flags; };
struct gem_new { struct gem_info info; uint32_t channel, align; };
struct push_buffer {
    uint64_t private;
    uint32_t handle, read_domains, write_domains, valid_domains, presumed_valid, presumed_domain;
    uint64_t presumed_offset;
};
struct push { uint32_t index, pad; uint64_t offset, length; };
struct pushbuf {
    uint32_t channel, buffer_count;
    uint64_t buffers;
    uint32_t relocation_count, push_count;
    uint64_t relocations, pushes;
    uint32_t suffix0, suffix1;
    uint64_t vram_available, gart_available;
};
struct cpu_prep { uint32_t handle, flags; };
struct vm_init { uint64_t address, size; };
struct bind_op { uint32_t op, flags, handle, pad; uint64_t address, offset, range; };
struct vm_bind { uint32_t count, flags, wait_count, signal_count; uint64_t waits, signals, ops; };
struct sync { uint32_t flags, handle; uint64_t point; };
struct exec_push { uint64_t address; uint32_t length, flags; };
struct exec { uint32_t channel, push_count, wait_count, signal_count; uint64_t waits, signals, pushes; };
struct syncobj_create { uint32_t handle, flags; };
struct syncobj_wait { uint64_t handles; int64_t timeout; uint32_t count, flags, first, pad; };

#define CHANNEL_ALLOC _IOWR('d', 0x42, struct channel_alloc)
#define CHANNEL_FREE _IOW('d', 0x43, int32_t)
#define VM_INIT _IOWR('d', 0x50, struct vm_init)
#define VM_BIND _IOWR('d', 0x51, struct vm_bind)
#define EXEC _IOWR('d', 0x52, struct exec)
#define GEM_NEW _IOWR('d', 0x80, struct gem_new)
#define GEM_PUSHBUF _IOWR('d', 0x81, struct pushbuf)
#define GEM_CPU_PREP _IOW('d', 0x82, struct cpu_prep)
#define GEM_INFO _IOWR('d', 0x84, struct gem_info)
#define SYNCOBJ_CREATE _IOWR('d', 0xbf, struct syncobj_create)
#define SYNCOBJ_WAIT _IOWR('d', 0xc3, struct syncobj_wait)

/* A buffer and, where the processor sees it, its bytes. */
struct buffer { uint32_t handle, domain; uint64_t address, map; uint8_t *bytes; };

static int device;

static int exists(const char *path)
{
    return access(path, F_OK) == 0;
}

static void pause_ms(long milliseconds)
{
    struct timespec pause = {.tv_nsec = milliseconds * 1000000};
    nanosleep(&pause, NULL);
}

static void need(int holds, const char *what)
{
    if (!holds) {
        perror(what);
        exit(1);
    }
}

static void map(struct buffer *buffer, size_t size)
{
    buffer->bytes = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, device, (off_t)buffer->map);
    need(buffer->bytes != MAP_FAILED, "mmap");
}

static struct buffer create(size_t size, uint32_t domain)
{
    struct gem_new request = {.info = {.domain = domain | MAPPABLE, .size = size}, .align = PAGE};
    need(ioctl(device, GEM_NEW, &request) == 0, "GEM_NEW");
    return (struct buffer){.handle = request.info.handle,
                           .domain = domain,
                           .address = request.info.offset,
                           .map = request.info.map_handle};
}

static uint32_t channel_on(uint32_t engine)
{
    struct channel_alloc request = {.fb_handle = UINT32_MAX, .engine = engine};
    need(ioctl(device, CHANNEL_ALLOC, &request) == 0, "CHANNEL_ALLOC");
    return (uint32_t)request.channel;
}

static void release_channel(uint32_t channel)
{
    int32_t number = (int32_t)channel;
    need(ioctl(device, CHANNEL_FREE, &number) == 0, "CHANNEL_FREE");
}

static uint32_t *methods(uint32_t *at, uint32_t subchannel, uint32_t method, uint32_t count)
{
    *at = UINT32_C(1) << 29 | count << 16 | subchannel << 13 | method >> 2;
    return at + 1;
}

/* `pitch` is both images': with 0 the same bytes are copied once for every line. */
static uint32_t *copy_lines(uint32_t *at, uint64_t from, uint64_t to, uint32_t pitch, uint32_t length, uint32_t lines)
{
    at = methods(at, 4, 0, 1);
    *at++ = COPY_CLASS;
    at = methods(at, 4, 0x400, 8);
    const uint32_t values[] = {(uint32_t)(from >> 32), (uint32_t)from, (uint32_t)(to >> 32), (uint32_t)to,
                               pitch, pitch, length, lines};
    memcpy(at, values, sizeof values);
    at = methods(at + 8, 4, 0x300, 1);
    *at++ = 0x386; /* not pipelined, flushed, both images without blocks, several lines */
    return at;
}

static uint32_t *copy(uint32_t *at, uint64_t from, uint64_t to, uint32_t length, uint32_t lines)
{
    return copy_lines(at, from, to, length, length, lines);
}

/* Runs what `push` holds with these buffers; the push buffer is the last of them. Returns 0 or an errno. */
static int submit(uint32_t channel, struct buffer *const *buffers, uint32_t count, size_t length)
{
    struct push_buffer list[8] = {{0}};
    for (uint32_t i = 0; i < count; i++) {
        list[i].handle = buffers[i]->handle;
        list[i].read_domains = list[i].write_domains = list[i].valid_domains = buffers[i]->domain;
    }
    struct push push = {.index = count - 1, .length = length};
    struct pushbuf request = {.channel = channel,
                              .buffer_count = count,
                              .buffers = (uintptr_t)list,
                              .push_count = length ? 1 : 0,
                              .pushes = (uintptr_t)&push};
    return ioctl(device, GEM_PUSHBUF, &request) == 0 ? 0 : errno;
}

/* Returns 0 or an errno. The kernel gives up after 30 seconds, for which a guest may stand still on a busy machine: look
 * again, and say so. */
static int wait_for(const struct buffer *buffer)
{
    struct cpu_prep request = {.handle = buffer->handle, .flags = 4};
    int error = EBUSY;
    for (int tries = 0; error == EBUSY && tries < 3; tries++) {
        if (tries)
            printf("waited for 30 seconds\n");
        error = ioctl(device, GEM_CPU_PREP, &request) == 0 ? 0 : errno;
    }
    return error;
}

static void pattern(uint8_t *bytes, uint32_t seed)
{
    for (uint32_t i = 0; i < BYTES / 4; i++) {
        uint32_t value = (i + seed) * UINT32_C(2654435761);
        memcpy(bytes + 4 * i, &value, 4);
    }
}

static int wrong(const uint8_t *bytes, uint32_t seed)
{
    static uint8_t expected[BYTES];
    pattern(expected, seed);
    int found = 0;
    for (int i = 0; i < BYTES; i++)
        found += bytes[i] != expected[i];
    return found;
}

/* Memory of the system to video memory and back, on a channel of its own. */
static void check_copies(int times)
{
    uint32_t channel = channel_on(ENGINE_COPY);
    struct buffer from = create(BYTES, GART), video = create(BYTES, VRAM), to = create(BYTES, GART);
    struct buffer push = create(PUSH_BYTES, GART);
    map(&from, BYTES), map(&to, BYTES), map(&push, PUSH_BYTES);
    struct buffer *all[] = {&from, &video, &to, &push};
    int bad = 0, failed = 0, waits = 0;
    for (int i = 0; i < times; i++) {
        pattern(from.bytes, (uint32_t)i);
        memset(to.bytes, 0, BYTES);
        uint32_t *at = copy((uint32_t *)push.bytes, from.address, video.address, PAGE, BYTES / PAGE);
        at = copy(at, video.address, to.address, PAGE, BYTES / PAGE);
        failed += submit(channel, all, 4, (size_t)((uint8_t *)at - push.bytes)) != 0;
        waits |= wait_for(&to);
        bad += wrong(to.bytes, (uint32_t)i);
    }
    printf("copies=%d\nfailed=%d\nwaited=%d\nwrong=%d\n", times, failed, waits, bad);
    release_channel(channel);
}

/* Where the kernel has a buffer after work that wants it in a domain; `*failed` becomes an errno. */
static uint32_t move(uint32_t channel, struct buffer *moved, struct buffer *push, uint32_t domain, int *failed)
{
    struct buffer *all[] = {moved, push};
    moved->domain = domain;
    int error = submit(channel, all, 2, 8);
    if (error == 0)
        error = wait_for(moved);
    struct gem_info info = {.handle = moved->handle};
    need(ioctl(device, GEM_INFO, &info) == 0, "GEM_INFO");
    if (error)
        *failed = error;
    return info.domain;
}

/* The kernel moves a buffer to video memory and back, with its copy engine. */
static void check_moves(void)
{
    uint32_t channel = channel_on(ENGINE_COPY);
    struct buffer moved = create(BYTES, VRAM | GART), push = create(PUSH_BYTES, GART);
    map(&moved, BYTES), map(&push, PUSH_BYTES);
    uint32_t *nothing = (uint32_t *)push.bytes;
    nothing[0] = nothing[1] = 0;
    int failed = 0;
    uint32_t first = move(channel, &moved, &push, GART, &failed);
    pattern(moved.bytes, 77);
    uint32_t there = move(channel, &moved, &push, VRAM, &failed);
    int wrong_there = wrong(moved.bytes, 77);
    uint32_t back = move(channel, &moved, &push, GART, &failed);
    printf("failed=%d\nfirst=%u\nthere=%u\nback=%u\nwrong-there=%d\nwrong-back=%d\n", failed, first, there, back,
           wrong_there, wrong(moved.bytes, 77));
    release_channel(channel);
}

/* A copy from where nothing is, then a fence: the channel is killed, and the next one works. */
static void check_fault(void)
{
    uint32_t channel = channel_on(ENGINE_COPY);
    struct buffer to = create(BYTES, GART), push = create(PUSH_BYTES, GART);
    map(&to, BYTES), map(&push, PUSH_BYTES);
    memset(to.bytes, 0x5A, BYTES);
    struct buffer *all[] = {&to, &push};
    uint32_t *at = copy((uint32_t *)push.bytes, UNMAPPED, to.address, PAGE, 1);
    at = methods(at, 4, 0x240, 3);
    const uint32_t dropped[] = {(uint32_t)(to.address >> 32), (uint32_t)to.address, 0xBAD};
    memcpy(at, dropped, sizeof dropped);
    at = methods(at + 3, 4, 0x300, 1);
    *at++ = 1 << 3;
    int first = submit(channel, all, 2, (size_t)((uint8_t *)at - push.bytes)), waited = wait_for(&to);
    pause_ms(200);
    int again = submit(channel, all, 2, 8);
    /* ENODEV from the first: the channel was killed before its submission returned. */
    printf("taken=%d\nwaited=%d\nkilled=%d\nuntouched=%d\n", first == 0 || first == ENODEV, waited, again == ENODEV,
           to.bytes[0] == 0x5A);
}

static void bind(const struct buffer *buffer, uint64_t address, uint64_t range)
{
    struct bind_op op = {.handle = buffer->handle, .address = address, .range = range};
    struct vm_bind request = {.count = 1, .ops = (uintptr_t)&op};
    need(ioctl(device, VM_BIND, &request) == 0, "VM_BIND");
}

/* The newer interface: addresses of our choosing, EXEC, a sync object. */
static void check_exec(void)
{
    struct vm_init init = {.address = KERNEL_FIRST, .size = KERNEL_BYTES};
    need(ioctl(device, VM_INIT, &init) == 0, "VM_INIT");
    uint32_t channel = channel_on(ENGINE_COPY);
    struct buffer from = create(BYTES, GART), video = create(BYTES, VRAM), to = create(BYTES, GART);
    struct buffer push = create(PUSH_BYTES, GART);
    map(&from, BYTES), map(&to, BYTES), map(&push, PUSH_BYTES);
    bind(&from, FROM_AT, BYTES), bind(&video, VIDEO_AT, BYTES), bind(&to, TO_AT, BYTES), bind(&push, PUSH_AT, PUSH_BYTES);
    pattern(from.bytes, 5);
    uint32_t *at = copy((uint32_t *)push.bytes, FROM_AT, VIDEO_AT, PAGE, BYTES / PAGE);
    at = copy(at, VIDEO_AT, TO_AT, PAGE, BYTES / PAGE);
    struct syncobj_create done = {0};
    need(ioctl(device, SYNCOBJ_CREATE, &done) == 0, "SYNCOBJ_CREATE");
    struct sync signal = {.handle = done.handle};
    struct exec_push run = {.address = PUSH_AT, .length = (uint32_t)((uint8_t *)at - push.bytes)};
    struct exec request = {.channel = channel,
                           .push_count = 1,
                           .signal_count = 1,
                           .signals = (uintptr_t)&signal,
                           .pushes = (uintptr_t)&run};
    need(ioctl(device, EXEC, &request) == 0, "EXEC");
    struct syncobj_wait wait = {.handles = (uintptr_t)&done.handle, .count = 1, .timeout = INT64_MAX};
    int waited = ioctl(device, SYNCOBJ_WAIT, &wait) == 0 ? 0 : errno;
    printf("waited=%d\nwrong=%d\n", waited, wrong(to.bytes, 5));
}

/* Copies that take the engine longer than any test lasts, all submitted at once: whatever becomes of this processor
 * meanwhile, the engine has work. Each happens only while a word in memory is not 0, so the end is near when /tmp/stop
 * is there. */
static void run_hog(void)
{
    enum { LISTS = 4, LAUNCHES = 256, LINES = 8192, LIST_BYTES = 4 * PAGE };
    uint32_t channel = channel_on(ENGINE_COPY);
    struct buffer from = create(BYTES, GART), video = create(BYTES, VRAM), to = create(BYTES, GART);
    struct buffer condition = create(PAGE, GART), list[LISTS], last = create(PUSH_BYTES, GART);
    map(&from, BYTES), map(&to, BYTES), map(&condition, PAGE), map(&last, PUSH_BYTES);
    pattern(from.bytes, 9);
    volatile uint32_t *goes_on = (volatile uint32_t *)condition.bytes;
    *goes_on = 1;
    int failed = 0, waits = 0;
    for (int i = 0; i < LISTS; i++) {
        list[i] = create(LIST_BYTES, GART);
        map(&list[i], LIST_BYTES);
        uint32_t *at = methods((uint32_t *)list[i].bytes, 4, 0, 1);
        *at++ = COPY_CLASS;
        at = methods(at, 4, 0x254, 3);
        const uint32_t not_zero[] = {(uint32_t)(condition.address >> 32), (uint32_t)condition.address, 2};
        memcpy(at, not_zero, sizeof not_zero);
        at += 3;
        for (int launch = 0; launch < LAUNCHES; launch++)
            at = copy_lines(at, from.address, video.address, 0, BYTES, LINES);
        struct buffer *all[] = {&from, &video, &condition, &list[i]};
        failed |= submit(channel, all, 4, (size_t)((uint8_t *)at - list[i].bytes));
    }
    printf("begun=1\n");
    fflush(stdout);
    while (!exists("/tmp/stop"))
        pause_ms(50);
    *goes_on = 0;
    for (int i = 0; i < LISTS; i++)
        waits |= wait_for(&list[i]);
    struct buffer *all[] = {&video, &to, &last};
    uint32_t *at = methods((uint32_t *)last.bytes, 4, 0x25c, 1);
    *at++ = 1; /* unconditional */
    at = copy(at, video.address, to.address, PAGE, BYTES / PAGE);
    failed |= submit(channel, all, 3, (size_t)((uint8_t *)at - last.bytes));
    waits |= wait_for(&to);
    printf("failed=%d\nwaited=%d\nwrong=%d\n", failed, waits, wrong(to.bytes, 9));
    release_channel(channel);
}

/* Both ends of a large piece of video memory. */
static void check_ends(uint64_t mib)
{
    uint32_t channel = channel_on(ENGINE_COPY);
    struct buffer video = create(mib * MIB, VRAM), system = create(2 * BYTES, GART), push = create(PUSH_BYTES, GART);
    map(&system, 2 * BYTES), map(&push, PUSH_BYTES);
    struct buffer *all[] = {&video, &system, &push};
    const uint64_t ends[] = {video.address, video.address + mib * MIB - BYTES};
    int failed = 0;
    for (int back = 0; back <= 1; back++) {
        uint32_t *at = (uint32_t *)push.bytes;
        for (uint32_t i = 0; i < 2; i++) {
            uint64_t here = system.address + i * BYTES;
            at = back ? copy(at, ends[i], here, PAGE, BYTES / PAGE) : copy(at, here, ends[i], PAGE, BYTES / PAGE);
            if (!back)
                pattern(system.bytes + i * BYTES, 20 + i);
        }
        failed |= submit(channel, all, 3, (size_t)((uint8_t *)at - push.bytes));
        failed |= wait_for(&system);
        if (!back)
            memset(system.bytes, 0, 2 * BYTES);
    }
    printf("failed=%d\nwrong=%d\n", failed, wrong(system.bytes, 20) + wrong(system.bytes + BYTES, 21));
    release_channel(channel);
}

/* Work on the graphics engine's runlist, each after the one before: a frame is done when its number is in memory. */
static void check_frames(int count)
{
    uint32_t channel = channel_on(ENGINE_GRAPHICS);
    struct buffer fence = create(PAGE, GART), push = create(PUSH_BYTES, GART), *all[] = {&fence, &push};
    map(&fence, PAGE), map(&push, PUSH_BYTES);
    volatile uint32_t *done = (volatile uint32_t *)fence.bytes;
    *done = 0;
    int failed = 0;
    for (int frame = 1; frame <= count && !failed; frame++) {
        uint32_t *at = methods((uint32_t *)push.bytes, 0, 0x10, 4);
        const uint32_t release[] = {(uint32_t)(fence.address >> 32), (uint32_t)fence.address, (uint32_t)frame,
                                    2 | 1 << 24};
        memcpy(at, release, sizeof release);
        failed = submit(channel, all, 2, (size_t)((uint8_t *)(at + 4) - push.bytes));
        while (!failed && *done != (uint32_t)frame)
            pause_ms(1);
    }
    printf("frames=%u\nfailed=%d\n", *done, failed);
    release_channel(channel);
}

#define SECRET UINT64_C(0x5EC7E700)

struct kept {
    uint32_t channel;
    struct buffer video, staging, push;
};

static int transfer(struct kept *k, uint64_t from, uint64_t to)
{
    struct buffer *all[] = {&k->video, &k->staging, &k->push};
    uint32_t *at = copy((uint32_t *)k->push.bytes, from, to, PAGE, MIB / PAGE);
    int error = submit(k->channel, all, 3, (size_t)((uint8_t *)at - k->push.bytes));
    return error ? error : wait_for(&k->staging);
}

/* Looks at all of video memory that it has: words that are not its own, words that are another guest's secret. */
static void look(struct kept *k, uint64_t own, uint64_t mib)
{
    uint64_t other = 0, strange = 0, *words = (uint64_t *)k->staging.bytes;
    int failed = 0;
    for (uint64_t number = 0; number < mib; number++) {
        failed |= transfer(k, k->video.address + number * MIB, k->staging.address);
        for (uint64_t i = 0; i < MIB / 8; i++) {
            other += words[i] != (own << 32 | (number * (MIB / 8) + i));
            strange += (words[i] >> 36) == SECRET >> 4 && words[i] >> 32 != own;
        }
    }
    printf("failed=%d\nother=%llu\nstrange=%llu\n", failed, (unsigned long long)other, (unsigned long long)strange);
    fflush(stdout);
}

/* Takes some video memory, looks what was left in it, fills it with a secret, keeps it until /tmp/look is there, and
 * looks again. */
static void keep(unsigned seed, uint64_t mib)
{
    struct kept k = {.channel = channel_on(ENGINE_COPY),
                     .video = create(mib * MIB, VRAM),
                     .staging = create(MIB, GART),
                     .push = create(PUSH_BYTES, GART)};
    map(&k.staging, MIB), map(&k.push, PUSH_BYTES);
    uint64_t own = SECRET | seed, *words = (uint64_t *)k.staging.bytes;
    look(&k, own, mib);
    int failed = 0;
    for (uint64_t number = 0; number < mib; number++) {
        for (uint64_t i = 0; i < MIB / 8; i++)
            words[i] = own << 32 | (number * (MIB / 8) + i);
        failed |= transfer(&k, k.staging.address, k.video.address + number * MIB);
    }
    printf("filled=%d\n", failed == 0);
    fflush(stdout);
    while (!exists("/tmp/look"))
        pause_ms(50);
    look(&k, own, mib);
    printf("looked=1\n");
    release_channel(k.channel);
}

int main(int count, char **words)
{
    device = open("/dev/dri/card0", O_RDWR);
    need(device >= 0, "/dev/dri/card0");
    const char *check = count > 1 ? words[1] : "";
    if (strcmp(check, "copies") == 0)
        check_copies(count > 2 ? atoi(words[2]) : 1);
    else if (strcmp(check, "moves") == 0)
        check_moves();
    else if (strcmp(check, "fault") == 0)
        check_fault();
    else if (strcmp(check, "exec") == 0)
        check_exec();
    else if (strcmp(check, "ends") == 0)
        check_ends(count > 2 ? (uint64_t)atoi(words[2]) : 1);
    else if (strcmp(check, "hog") == 0)
        run_hog();
    else if (strcmp(check, "frames") == 0)
        check_frames(count > 2 ? atoi(words[2]) : 1);
    else if (strcmp(check, "keep") == 0)
        keep(count > 2 ? (unsigned)atoi(words[2]) : 1, count > 3 ? (uint64_t)atoi(words[3]) : 1);
    else
        return 2;
    return 0;
}
