/* Lengths of gen9 commands, and a scan that passes over those without an effect here.
 *
 * Headers: Intel Graphics PRM, Kaby Lake, volume 2a (command reference): bits 31:29 are the client (0 MI,
 * 2 blitter, 3 render and media), MI opcodes are bits 28:23, lengths are bits 7:0 and do not count the first two
 * dwords. MI_FLUSH_DW has its length in bits 5:0 alone: bit 7 is the video engine's cache invalidation. MI opcodes
 * below 0x10 are one dword long.
 */
#include <stdbool.h>

#include "umdev.h"

#include "gvt_decls.h"

enum {
    CLIENT_MI = 0,
    CLIENT_BLITTER = 2,
    CLIENT_RENDER = 3,
    MI_NOOP = 0x00,
    MI_USER_INTERRUPT = 0x02,
    MI_BATCH_BUFFER_END = 0x0A,
    MI_SINGLE_DWORD = 0x10, /* opcodes below it */
    MI_FLUSH_DW = 0x26,
    PIPELINE_SELECT = 0x6904,
    VF_STATISTICS = 0x680B,
    PIPE_CONTROL = 0x7A00
};

uint32_t gvt_command_length(uint32_t header)
{
    uint32_t client = header >> 29;
    if (client == CLIENT_MI) {
        uint32_t opcode = header >> 23 & 0x3F;
        if (opcode < MI_SINGLE_DWORD)
            return 1;
        return (header & (opcode == MI_FLUSH_DW ? 0x3F : 0xFF)) + 2;
    }
    if (client == CLIENT_RENDER) {
        uint32_t kind = header >> 16;
        return kind == PIPELINE_SELECT || kind == VF_STATISTICS ? 1 : (header & 0xFF) + 2;
    }
    return client == CLIENT_BLITTER ? (header & 0xFF) + 2 : 0;
}

static bool has_effect(uint32_t header)
{
    uint32_t client = header >> 29;
    if (client == CLIENT_RENDER)
        return header >> 16 == PIPE_CONTROL;
    if (client != CLIENT_MI)
        return true;
    uint32_t opcode = header >> 23 & 0x3F;
    return opcode >= MI_SINGLE_DWORD || opcode == MI_USER_INTERRUPT || opcode == MI_BATCH_BUFFER_END;
}

void gvt_scan_commands(const uint32_t *dwords, uint32_t count, gvt_scan *ret)
{
    uint32_t at = 0, commands = 0, states = 0, length = 0, stop = GVT_STOP_END;
    while (at < count) {
        uint32_t header = dwords[at];
        if (header == MI_NOOP) { /* most of a buffer's padding */
            at++;
            commands++;
            continue;
        }
        length = gvt_command_length(header);
        if (length == 0)
            stop = GVT_STOP_UNKNOWN;
        else if (length > count - at)
            stop = GVT_STOP_PARTIAL;
        else if (has_effect(header))
            stop = GVT_STOP_EXECUTE;
        if (stop != GVT_STOP_END)
            break;
        at += length;
        commands++;
        states += header >> 29 == CLIENT_RENDER;
    }
    *ret = (gvt_scan){.at = at,
                      .length = stop == GVT_STOP_END ? 0 : length,
                      .stop = stop,
                      .commands = commands,
                      .states = states};
}
