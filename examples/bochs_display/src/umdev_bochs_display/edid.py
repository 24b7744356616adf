"""The monitor: a 128-byte EDID block (VESA E-EDID 1.4, section 3) with one preferred mode."""

from __future__ import annotations

HEADER = bytes.fromhex("00ffffffffffff00")
REFRESH = 60


def edid(width: int, height: int) -> bytes:
    """The EDID of a monitor whose preferred mode is `width` x `height` at 60 Hz."""
    block = bytearray(128)
    block[0:8] = HEADER
    block[8:10] = _manufacturer("UMD")
    block[10:12] = (0x0001).to_bytes(2, "little")  # product
    block[16:20] = bytes((0, 30, 1, 4))  # week, year 2020, EDID 1.4
    block[20:25] = bytes((0xA5, 32, 20, 0x78, 0x06))  # digital 8 bit, 32 x 20 cm, gamma 2.2, RGB with preferred mode
    block[25:35] = bytes.fromhex("ee91a3544c99260f5054")  # sRGB chromaticities (IEC 61966-2-1)
    block[35:38] = bytes((0x21, 0x08, 0x00))  # established: 640x480, 800x600, 1024x768 at 60 Hz
    block[38:54] = b"\x01\x01" * 8  # no standard timings
    block[54:72] = _detailed_timing(width, height)
    block[72:90] = _text(0xFC, "umdev")
    block[90:108] = _text(0xFF, "0001")
    block[108:126] = bytes((0, 0, 0, 0xFD, 0, 50, 75, 30, 90, 18, 0, 10, 32, 32, 32, 32, 32, 32))  # range limits
    block[127] = -sum(block) % 256
    return bytes(block)


def _manufacturer(letters: str) -> bytes:
    """Three letters in five bits each (3.4.1)."""
    a, b, c = (ord(letter) - ord("@") for letter in letters)
    return (a << 10 | b << 5 | c).to_bytes(2, "big")


def _detailed_timing(width: int, height: int) -> bytes:
    """An 18-byte detailed timing descriptor (3.10.2) with fixed, generous blanking."""
    hblank, vblank, hfront, hsync, vfront, vsync = 160, 40, 48, 32, 3, 6
    clock = (width + hblank) * (height + vblank) * REFRESH // 10_000
    return bytes((
        clock & 0xFF, clock >> 8 & 0xFF,
        width & 0xFF, hblank & 0xFF, width >> 8 << 4 | hblank >> 8,
        height & 0xFF, vblank & 0xFF, height >> 8 << 4 | vblank >> 8,
        hfront, hsync, vfront << 4 | vsync, 0,
        320 & 0xFF, 200 & 0xFF, 320 >> 8 << 4,
        0, 0, 0x1E,
    ))  # fmt: skip


def _text(tag: int, text: str) -> bytes:
    """A display descriptor of 13 characters (3.10.3)."""
    return bytes((0, 0, 0, tag, 0)) + (text + "\n").ljust(13).encode("ascii")
