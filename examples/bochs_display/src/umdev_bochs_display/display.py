"""The device: 16 MiB of passed-through framebuffer, and trapped EDID and VBE registers.

Register facts: QEMU, docs/specs/standard-vga (MMIO area), and Bochs' VBE DISPI interface as listed there.
"""

from __future__ import annotations

from umdev.device import (
    RO,
    Block,
    Device,
    Flag,
    MemoryBar,
    PciId,
    Register,
    Register8,
    Register16,
    RegisterArray,
    ResetKind,
    State,
    Window,
    query,
)

from .edid import edid

FRAMEBUFFER_SIZE = 16 << 20
MAXIMUM_WIDTH, MAXIMUM_HEIGHT, MAXIMUM_DEPTH = 2560, 1600, 32
PREFERRED = (1024, 768)
INTERFACE_ID = 0xB0C5
LITTLE_ENDIAN = 0x1E1E_1E1E

# Indexes of the VBE DISPI registers.
ID, WIDTH, HEIGHT, DEPTH, ENABLE, BANK, VIRTUAL_WIDTH, VIRTUAL_HEIGHT, X_OFFSET, Y_OFFSET, MEMORY_64K = range(11)
ENABLED, GET_CAPABILITIES, NO_CLEAR = 0x01, 0x02, 0x80


class Framebuffer(Block["BochsDisplay"]):
    """BAR 0."""

    pixels = Window(0, FRAMEBUFFER_SIZE)


class Endianness(Register):
    """Written by drivers of big-endian guests; this display is little-endian and ignores it."""

    big = Flag(31, RO)


class DisplayRegisters(Block["BochsDisplay"]):
    """BAR 2."""

    edid = RegisterArray(0x000, Register8, RO, count=256)
    vbe = RegisterArray(0x500, Register16, count=11)
    extended_size = Register(0x600, RO, reset=8)
    endianness = Endianness(0x604, RO, reset=LITTLE_ENDIAN)

    @vbe.on_read
    def read_vbe(self, index: int) -> int:
        if self.vbe[ENABLE].value & GET_CAPABILITIES:
            maxima = {WIDTH: MAXIMUM_WIDTH, HEIGHT: MAXIMUM_HEIGHT, DEPTH: MAXIMUM_DEPTH}
            return maxima.get(index, self.vbe[index].value)
        return self.vbe[index].value

    @vbe.on_write
    def write_vbe(self, index: int, value: int) -> None:
        if index == ID:
            self.vbe[ID].value = INTERFACE_ID
        elif index == MEMORY_64K:
            self.vbe[MEMORY_64K].value = FRAMEBUFFER_SIZE >> 16
        elif index == ENABLE:
            if value & ENABLED and not self.device.enabled and not value & NO_CLEAR:
                self.device.clear()
            self.device.enabled = bool(value & ENABLED)


class BochsDisplay(Device):
    """One display."""

    pci = PciId(vendor=0x1234, device=0x1111, class_code=0x038000, revision=2)
    capabilities = ()
    vram = MemoryBar(0, Framebuffer, size=FRAMEBUFFER_SIZE, prefetchable=True)
    mmio = MemoryBar(2, DisplayRegisters, size=4096, sizes=(1, 2, 4))
    enabled = State(lambda: False)

    def on_reset(self, kind: ResetKind) -> None:
        self.mmio.vbe[ID].value = INTERFACE_ID
        self.mmio.vbe[MEMORY_64K].value = FRAMEBUFFER_SIZE >> 16
        for index, byte in enumerate(edid(*PREFERRED)):
            self.mmio.edid[index].value = byte

    def clear(self) -> None:
        """Black, as a mode switch leaves it."""
        self.vram.pixels.view[:] = bytes(FRAMEBUFFER_SIZE)

    @query
    def frame(self) -> dict[str, object]:
        """The visible picture: width, height, depth in bits, and rows of little-endian pixels without padding."""
        vbe = [self.mmio.vbe[index].value for index in range(11)]
        width, height, depth = vbe[WIDTH], vbe[HEIGHT], vbe[DEPTH]
        blank = {"width": 0, "height": 0, "depth": 0, "rows": b""}
        if not vbe[ENABLE] & ENABLED or depth not in {16, 24, 32}:
            return blank
        pixel = depth // 8
        stride = max(vbe[VIRTUAL_WIDTH], width) * pixel
        start = vbe[Y_OFFSET] * stride + vbe[X_OFFSET] * pixel
        if not 0 < width <= MAXIMUM_WIDTH or not height > 0 or start + height * stride > FRAMEBUFFER_SIZE:
            return blank  # a mode that does not fit in memory shows nothing
        pixels = self.vram.pixels.view
        rows = b"".join(bytes(pixels[start + y * stride : start + y * stride + width * pixel]) for y in range(height))
        return {"width": width, "height": height, "depth": depth, "rows": rows}
