"""Registers that every command streamer has, relative to its base.

Facts: Intel Graphics PRM, Kaby Lake, volume 2c; offsets are the same for all four engines.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from umdev.device import RO, W1C, WO, Block, Field, Flag, Native, Register, Register64, RegisterArray

from .engines import TIMESTAMP_HZ

if TYPE_CHECKING:
    from .execlists import EngineState
    from .vgpu import Vgpu  # noqa: F401  # the type in Block["Vgpu"]

CSB_ENTRIES = 6
NONPRIV_SLOTS = 12


class MiMode(Register):
    """MI_MODE. The upper half of a write enables bits of the lower one."""

    stop_ring = Flag(8)
    idle = Flag(9)


class RingMode(Register):
    """GFX_MODE: how the engine takes its work. The privilege bits 1:0 are not a guest's to set: they stay 0."""

    privileged = Field(0, 1, RO)
    run_list = Flag(15)


class ResetControl(Register):
    """RESET_CTL: the driver asks an engine to come to rest, and resets it when it is ready."""

    request = Flag(0)
    ready = Flag(1, RO)
    catastrophic_error = Flag(2, RO)


class ContextStatusPointer(Register):
    """CONTEXT_STATUS_PTR: the slot of the status buffer that was written last, and the one that was read last."""

    write_pointer = Field(0, 2)
    read_pointer = Field(8, 10)


class ExeclistStatus(Register):
    """EXECLIST_STATUS, low half."""

    active = Flag(0, RO)
    valid0 = Flag(4, RO)
    slot0_active = Flag(14, RO)


class RingRegisters(Block["Vgpu"]):
    """One command streamer."""

    tail = Register(0x030)
    head = Register(0x034)
    start = Register(0x038)
    control = Register(0x03C)
    psmi_control = Register(0x050, masked=True)
    max_idle_count = Register(0x054)
    acthd_high = Register(0x05C, RO)
    dma_fadd_high = Register(0x060, RO)
    ipeir = Register(0x064)
    ipehr = Register(0x068)
    instdone = Register(0x06C, RO, reset=0xFFFF_FFFF)
    instps = Register(0x070, RO)
    acthd = Register(0x074, RO)
    dma_fadd = Register(0x078, RO)
    status_page = Register(0x080)
    hwstam = Register(0x098, reset=0xFFFF_FFFF)
    mi_mode = MiMode(0x09C, masked=True, reset=0x200)
    interrupt_mask = Register(0x0A8, reset=0xFFFF_FFFF)
    eir = Register(0x0B0, W1C)
    emr = Register(0x0B4, reset=0xFFFF_FFFF)
    esr = Register(0x0B8, RO)
    instpm = Register(0x0C0, masked=True)
    power_clock_state = Register(0x0C8)
    reset_control = ResetControl(0x0D0, masked=True)
    csfe_chicken1 = Register(0x0D4, masked=True)
    ff_slice_chicken1 = Register(0x0E0, masked=True)
    ff_slice_chicken2 = Register(0x0E4, masked=True)
    chicken3 = Register(0x0EC, masked=True)
    batch_state = Register(0x110)
    second_batch_address = Register(0x114)
    second_batch_state = Register(0x118)
    second_batch_address_high = Register(0x11C)
    chicken_120 = Register(0x120, masked=True)
    batch_address = Register(0x140)
    batch_address_high = Register(0x168)
    context_id = Register(0x180)
    per_context_batch = Register(0x1C0)
    indirect_context = Register(0x1C4)
    indirect_context_offset = Register(0x1C8)
    submit_port = Register(0x230, WO, native=Native("umdev_intel_gvt._fast", "gvt_submit_port"))
    """The fourth of four writes submits: element 1 high, low, element 0 high, low. See native/submission.c."""
    execlist_status = ExeclistStatus(0x234, RO)
    execlist_context = Register(0x238, RO)
    context_control = Register(0x244, masked=True)
    page_directory = RegisterArray(0x270, Register64, count=4)
    mode = RingMode(0x29C, masked=True)
    timestamp = Register64(0x358, RO)
    status_buffer = RegisterArray(0x370, Register64, RO, count=CSB_ENTRIES)
    status_pointer = ContextStatusPointer(0x3A0, masked=True, reset=0x0505)
    context_timestamp = Register(0x3A8)
    force_to_nonpriv = RegisterArray(0x4D0, Register, count=NONPRIV_SLOTS, reset=0x2094)
    general = RegisterArray(0x600, Register64, count=16)

    @property
    def engine(self) -> EngineState:
        """What runs behind these registers."""
        return self.device.engine_at(self.base)

    @mi_mode.on_read
    def idle_unless_running(self) -> int:
        """MODE_IDLE is what the driver polls before a reset; a stopped ring is idle."""
        value = self.mi_mode.value
        idle = MiMode.idle.bits
        return value & ~idle if self.engine.busy and not value & MiMode.stop_ring.bits else value | idle

    @reset_control.on_write
    def come_to_rest(self, value: int) -> None:
        """Ready at once: the engine stops between two commands, and a reset takes what it runs."""
        self.reset_control.ready = self.reset_control.request
        self.reset_control.catastrophic_error = False

    @timestamp.on_read
    def count_ticks(self) -> int:
        """Runs with the guest's time."""
        return self.device.timestamp()


def ticks(now_ns: int) -> int:
    """The timestamp at a time in ns."""
    return now_ns * TIMESTAMP_HZ // 1_000_000_000
