/* The vGPU's C alone, for the sanitizers: garbage in every number, each buffer an allocation of its own. */
#include <string.h>

#include "softgpu.h"

#include "gvt_decls.h"
#include "gvt_test.h"

static uint64_t seed = 0x9E3779B97F4A7C15;

uint64_t chance(void)
{
    seed ^= seed << 13;
    seed ^= seed >> 7;
    seed ^= seed << 17;
    return seed;
}

/* Streams of garbage: what was passed over, and what is left, add up, and nothing beyond the buffer is read. */
static void test_scan(void)
{
    for (int round = 0; round < 20000; round++) {
        uint32_t count = (uint32_t)(chance() % 300);
        uint32_t *dwords = malloc(count * sizeof *dwords + 1);
        CHECK(dwords);
        for (uint32_t i = 0; i < count; i++)
            dwords[i] = chance() % 4 ? (uint32_t)chance() & 0x7FFFFF07u : 0;
        gvt_scan found;
        gvt_scan_commands(dwords, count, &found);
        CHECK(found.at <= count && found.states <= found.commands && found.commands <= found.at);
        switch (found.stop) {
        case GVT_STOP_END:
            CHECK(found.at == count && found.length == 0);
            break;
        case GVT_STOP_EXECUTE:
            CHECK(found.length && found.at + found.length <= count);
            break;
        case GVT_STOP_PARTIAL:
            CHECK(found.at + found.length > count);
            break;
        default:
            CHECK(found.stop == GVT_STOP_UNKNOWN && gvt_command_length(dwords[found.at]) == 0);
        }
        free(dwords);
    }
}

/* Accesses anywhere: only the slices change, and what is written is read back. */
static void test_ggtt(void)
{
    enum { COUNT = 4096 };
    uint64_t *entries = calloc(COUNT, sizeof *entries);
    CHECK(entries);
    gvt_ggtt ggtt = {.entries = entries, .count = COUNT, .slices = {{16, 64}, {1024, COUNT}}};
    for (int round = 0; round < 200000; round++) {
        uint32_t length = (uint32_t)(1u << chance() % 5);
        uint64_t offset = chance() % (COUNT * 8 + 64);
        uint8_t *bytes = malloc(length), *back = malloc(length);
        CHECK(bytes && back);
        memset(bytes, (int)(chance() | 1), length);
        CHECK(gvt_ggtt_access(&ggtt, offset, bytes, length, UMDEV_WRITE) == UMDEV_OK);
        CHECK(gvt_ggtt_access(&ggtt, offset, back, length, 0) == UMDEV_OK);
        uint64_t index = offset / 8;
        int owned = (index >= 16 && index < 64) || (index >= 1024 && index < COUNT);
        int taken = owned && (length == 4 || length == 8) && offset % length == 0;
        CHECK(taken ? memcmp(bytes, back, length) == 0 : back[0] == 0);
        free(bytes);
        free(back);
    }
    for (int i = 0; i < COUNT; i++)
        CHECK(entries[i] == 0 || (i >= 16 && i < 64) || i >= 1024);
    CHECK(ggtt.updates && ggtt.refused);
    free(entries);
}

enum { MEMORY = 64 * 4096 };
static uint8_t memory[MEMORY];

static int space_read(softgpu_space *space, uint64_t address, void *bytes, uint64_t length, softgpu_fault *fault)
{
    (void)space, (void)fault;
    if (address >= MEMORY || length > MEMORY - address)
        return SOFTGPU_NOT_PRESENT;
    memcpy(bytes, memory + address, length);
    return SOFTGPU_OK;
}

static int space_write(softgpu_space *space, uint64_t address, const void *bytes, uint64_t length, softgpu_fault *fault)
{
    (void)space, (void)fault;
    if (address >= MEMORY || length > MEMORY - address)
        return SOFTGPU_NOT_PRESENT;
    memcpy(memory + address, bytes, length);
    return SOFTGPU_OK;
}

/* Through fences of every pitch: each byte has a place of its own, in its fence. */
static void test_fences(void)
{
    for (uint32_t y_tiled = 0; y_tiled < 2; y_tiled++) {
        for (uint32_t pitch = 512; pitch <= 4096; pitch += y_tiled ? 128 : 512) {
            gvt_fence fence = {.first = 4096, .end = 4096 + (uint64_t)pitch * 32, .pitch = pitch, .y_tiled = y_tiled};
            uint8_t *seen = calloc(1, (size_t)pitch * 32);
            CHECK(seen);
            for (uint64_t address = fence.first; address < fence.end; address++) {
                uint64_t place = gvt_untile(&fence, address) - fence.first;
                CHECK(place < (uint64_t)pitch * 32 && !seen[place]);
                seen[place] = 1;
            }
            free(seen);
        }
    }
}

static const softgpu_api api = {.space_read = space_read, .space_write = space_write};

static void set_fences(gvt_aperture *aperture)
{
    for (int i = 0; i < 4; i++) {
        uint64_t first = chance() % 80 * 4096;
        aperture->fences[i] = (gvt_fence){.first = first,
                                          .end = chance() % 2 ? first + chance() % 16 * 4096 : 0,
                                          .pitch = (uint32_t)(chance() % 64 + 1) * 128,
                                          .y_tiled = chance() % 2};
    }
}

/* One long access does what as many of a byte do. */
static void test_aperture_runs(void)
{
    gvt_aperture aperture = {.api = &api};
    static uint8_t before[MEMORY], after[MEMORY], bytes[40000], back[40000];
    for (int round = 0; round < 300; round++) {
        set_fences(&aperture);
        uint32_t length = (uint32_t)(chance() % sizeof bytes + 1);
        uint64_t offset = chance() % (MEMORY + 4096);
        for (uint32_t i = 0; i < length; i++)
            bytes[i] = (uint8_t)chance();
        memcpy(before, memory, MEMORY);
        CHECK(gvt_aperture_access(&aperture, offset, bytes, length, UMDEV_WRITE) == UMDEV_OK);
        memcpy(after, memory, MEMORY);
        memcpy(memory, before, MEMORY);
        for (uint32_t i = 0; i < length; i++)
            CHECK(gvt_aperture_access(&aperture, offset + i, &bytes[i], 1, UMDEV_WRITE) == UMDEV_OK);
        CHECK(memcmp(after, memory, MEMORY) == 0);
        CHECK(gvt_aperture_access(&aperture, offset, back, length, 0) == UMDEV_OK);
        for (uint32_t i = 0; i < length; i++)
            CHECK(gvt_aperture_access(&aperture, offset + i, &bytes[i], 1, 0) == UMDEV_OK && bytes[i] == back[i]);
    }
}

static void test_aperture(void)
{
    gvt_aperture aperture = {.api = &api};
    for (int round = 0; round < 50000; round++) {
        if (round % 64 == 0)
            set_fences(&aperture);
        uint32_t length = (uint32_t)(chance() % 64 + 1);
        uint64_t offset = chance() % (MEMORY + 4096);
        uint8_t *bytes = malloc(length);
        CHECK(bytes);
        memset(bytes, round, length);
        CHECK(gvt_aperture_access(&aperture, offset, bytes, length, round % 2 ? UMDEV_WRITE : 0) == UMDEV_OK);
        free(bytes);
    }
    CHECK(aperture.refused);
    memset(aperture.fences, 0, sizeof aperture.fences);
    uint8_t byte = 0;
    CHECK(gvt_aperture_access(&aperture, MEMORY, &byte, 1, 0) == UMDEV_OK && byte == 0xFF);
}

static void test_unlisted(void)
{
    umdev_access access = {.flags = 0};
    uint64_t value = 0;
    CHECK(gvt_unlisted(NULL, &access, &value) == UMDEV_UNHANDLED);
    value = 5;
    CHECK(gvt_unlisted(NULL, &access, &value) == UMDEV_OK && value == 5);
    access.flags = UMDEV_WRITE;
    CHECK(gvt_unlisted(NULL, &access, &value) == UMDEV_UNHANDLED);
}

int main(void)
{
    test_scan();
    test_ggtt();
    test_fences();
    test_aperture();
    test_aperture_runs();
    test_unlisted();
    test_hot();
    puts("ok");
    return 0;
}
