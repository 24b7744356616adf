"""What the function is: identity and capabilities.

Values: a Kaby Lake GT2 (8086:5912, revision 4); Intel Graphics PRM, Kaby Lake, volume 2c, and Linux,
drivers/gpu/drm/i915. Class 03/80 ("other display") keeps firmware and VMM from treating it as VGA.
"""

from __future__ import annotations

import struct

from umdev.device import Interrupts, PciId, PowerManagement, VendorSpecific

IDENTITY = PciId(
    vendor=0x8086,
    device=0x5912,
    class_code=0x038000,
    revision=0x04,
    subsystem_vendor=0x8086,
    subsystem_device=0x2212,
)
INTERRUPTS = Interrupts(msi=1, msi_address64=False, intx=True)
_IDENTIFIER = 0x40  # the vendor's capability, which on these parts holds the graphics control registers as well
_DATA = _IDENTIFIER + 3
_GRAPHICS_CONTROL = 0x50
_STOLEN_BASE = 0x5C
_EIGHT_MIB_OF_TABLE = 3 << 6
"""GGMS: 8 MiB of global table, for 4 GiB of graphics memory; no stolen memory (GMS 0)."""


def _registers() -> bytes:
    data = bytearray(_STOLEN_BASE + 4 - _DATA)
    struct.pack_into("<H", data, _GRAPHICS_CONTROL - _DATA, _EIGHT_MIB_OF_TABLE)
    return bytes(data)


CAPABILITIES = (
    VendorSpecific(data=_registers(), offset=_IDENTIFIER),
    PowerManagement(no_soft_reset=True, offset=0xD0),
)
"""There is no OpRegion: ASLS, at 0xfc, reads 0."""
