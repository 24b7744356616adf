/* The vGPU's C alone, for the sanitizers: garbage in every number, each buffer an allocation of its own. */
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "softgpu.h"

#include "nv_decls.h"
#include "umdev_check.h"

enum { VRAM = 1 << 20, SYSTEM = 1 << 16, PAGE = 4096 };

static uint64_t seed = 0x9E3779B97F4A7C15;
static uint8_t *system_memory;
static uint32_t kicks[NV_CHANNELS];

static uint64_t chance(void)
{
    seed ^= seed << 13;
    seed ^= seed >> 7;
    seed ^= seed << 17;
    return seed;
}

static void kicked(void *context, uint32_t channel)
{
    CHECK(context == kicks && channel < NV_CHANNELS);
    kicks[channel]++;
}

/* Pages by their number: of the system's memory, nowhere, beyond video memory, or in it. */
static int translate(softgpu_space *space, uint64_t address, int write, softgpu_run *ret, softgpu_fault *fault)
{
    uint64_t page = address / PAGE, offset = address % PAGE;
    *ret = (softgpu_run){.length = PAGE - offset, .writable = 1, .target = SOFTGPU_LOCAL};
    switch (page % 4) {
    case 0:
        ret->target = SOFTGPU_SYSTEM;
        ret->address = address % SYSTEM;
        return SOFTGPU_OK;
    case 1:
        return SOFTGPU_NOT_PRESENT;
    case 2:
        ret->address = page % 8 == 2 ? VRAM - 8 + offset : UINT64_MAX - PAGE + offset;
        return SOFTGPU_OK;
    default:
        ret->address = page * PAGE % VRAM + offset;
        return SOFTGPU_OK;
    }
}

static int load(softgpu_space *space, uint64_t address, void *bytes, uint64_t length, softgpu_fault *fault)
{
    memcpy(bytes, system_memory + address % SYSTEM, length);
    return SOFTGPU_OK;
}

static int store(softgpu_space *space, uint64_t address, const void *bytes, uint64_t length, softgpu_fault *fault)
{
    memcpy(system_memory + address % SYSTEM, bytes, length);
    return SOFTGPU_OK;
}

static const softgpu_api api = {.space_translate = translate, .space_read = load, .space_write = store};

static nv_vram *new_vram(void)
{
    nv_vram *vram = calloc(1, sizeof *vram);
    CHECK(vram);
    vram->bytes = calloc(1, VRAM);
    CHECK(vram->bytes);
    vram->size = VRAM;
    vram->kicked = kicked;
    vram->context = kicks;
    return vram;
}

static void free_vram(nv_vram *vram)
{
    free(vram->bytes);
    free(vram);
}

/* What is written comes back where there is memory, and ones come where there is none. */
static void test_window(void)
{
    nv_vram *vram = new_vram();
    int token;
    nv_window window = {.api = &api, .space = &token, .vram = vram, .limit = UINT64_MAX};
    for (int round = 0; round < 200000; round++) {
        uint32_t length = (uint32_t)(chance() % 4 ? 1u << chance() % 4 : chance() % 9000 + 1);
        uint64_t offset = chance() % (64 * PAGE);
        window.limit = chance() % 8 ? UINT64_MAX : chance() % (64 * PAGE);
        uint8_t *bytes = malloc(length), *again = malloc(length);
        CHECK(bytes && again);
        for (uint32_t i = 0; i < length; i++)
            bytes[i] = (uint8_t)chance();
        CHECK(nv_window_access(&window, offset, bytes, length, UMDEV_WRITE) == UMDEV_OK);
        CHECK(nv_window_access(&window, offset, again, length, 0) == UMDEV_OK);
        bool plain = offset / PAGE % 4 == 3 && offset % PAGE + length <= PAGE && window.limit == UINT64_MAX;
        CHECK(!plain || memcmp(bytes, again, length) == 0);
        if (offset / PAGE % 4 == 1)
            CHECK(again[0] == 0xFF);
        free(bytes);
        free(again);
    }
    window.space = NULL;
    uint8_t byte = 0;
    CHECK(nv_window_access(&window, 3 * PAGE, &byte, 1, 0) == UMDEV_OK && byte == 0xFF);
    CHECK(window.refused);
    free_vram(vram);
}

/* A put pointer that is touched, with whatever size, kicks its channel once; what lies beside does not. */
static void test_kicks(void)
{
    nv_vram *vram = new_vram();
    nv_pramin pramin = {.vram = vram, .base = 0};
    uint8_t bytes[2048] = {0};
    for (uint32_t i = 0; i < NV_CHANNELS; i++) {
        vram->put[i] = i * 0x200 + 0x8C;
        vram->channel[i] = i;
    }
    vram->channels = NV_CHANNELS;
    for (int round = 0; round < 20000; round++) {
        uint64_t offset = chance() % (VRAM - sizeof bytes);
        uint32_t length = (uint32_t)(chance() % sizeof bytes + 1);
        memset(kicks, 0, sizeof kicks);
        CHECK(nv_pramin_access(&pramin, offset, bytes, length, UMDEV_WRITE) == UMDEV_OK);
        for (uint64_t i = offset / 0x200; i <= (offset + length) / 0x200 && i < NV_CHANNELS; i++) {
            uint64_t put = i * 0x200 + 0x8C;
            CHECK(kicks[i] == (put + 4 > offset && put < offset + length));
        }
        CHECK(nv_pramin_access(&pramin, offset, bytes, length, 0) == UMDEV_OK);
    }
    free_vram(vram);
}

static void test_pramin(void)
{
    nv_vram *vram = new_vram();
    static const uint64_t bases[] = {0, VRAM - 65536, VRAM, UINT64_C(1) << 48, UINT64_MAX - (1 << 20)};
    for (unsigned i = 0; i < sizeof bases / sizeof *bases; i++) {
        nv_pramin pramin = {.vram = vram, .base = bases[i]};
        for (uint64_t offset = 0; offset < 1 << 20; offset += 65535) {
            uint64_t value = 0;
            uint32_t length = (uint32_t)(chance() % 8 + 1);
            CHECK(nv_pramin_access(&pramin, offset, &value, length, UMDEV_WRITE) == UMDEV_OK);
            CHECK(nv_pramin_access(&pramin, offset, &value, length, 0) == UMDEV_OK);
            bool inside = bases[i] < VRAM && bases[i] + offset + length <= VRAM;
            CHECK((value == 0) == inside);
        }
    }
    free_vram(vram);
}

static void test_prom(void)
{
    uint8_t *image = malloc(PAGE);
    CHECK(image);
    memset(image, 0x5A, PAGE);
    nv_prom prom = {.image = image, .size = PAGE};
    for (uint64_t offset = 0; offset < 2 * PAGE; offset++) {
        uint64_t value = 0;
        CHECK(nv_prom_access(&prom, offset, &value, 8, 0) == UMDEV_OK);
        CHECK((value & 0xFF) == (offset < PAGE ? 0x5A : 0xFF));
        CHECK(nv_prom_access(&prom, offset, &value, 8, UMDEV_WRITE) == UMDEV_OK);
    }
    CHECK(image[0] == 0x5A);
    free(image);
}

/* Whatever an entry holds, what comes out is something that a walk can use. */
static void test_entries(void)
{
    for (int round = 0; round < 200000; round++) {
        softgpu_entry ret[2] = {{.kind = SOFTGPU_NONE}, {.kind = SOFTGPU_NONE}};
        uint32_t level = (uint32_t)(chance() % 3);
        uint64_t entry = chance();
        nv_decode(NULL, level, entry, ret);
        for (int i = 0; i < 2; i++) {
            CHECK(ret[i].target == SOFTGPU_LOCAL || ret[i].target == SOFTGPU_SYSTEM);
            CHECK(ret[i].address < UINT64_C(1) << 40 && ret[i].address % PAGE == 0);
            if (ret[i].kind == SOFTGPU_TABLE)
                CHECK(level == 0 && ret[i].level > level && ret[i].level < 3);
            else if (ret[i].kind == SOFTGPU_PAGE)
                CHECK(level && (ret[i].shift == 12 || ret[i].shift == 17));
        }
        if (level)
            CHECK(ret[1].kind == SOFTGPU_NONE &&
                  (ret[0].kind == SOFTGPU_PAGE) == ((entry & 1) && (entry >> 33 & 3) != 1));
    }
}

int main(void)
{
    system_memory = calloc(1, SYSTEM + 2 * PAGE);
    CHECK(system_memory);
    test_window();
    test_kicks();
    test_pramin();
    test_prom();
    test_entries();
    free(system_memory);
    puts("ok");
    return 0;
}
