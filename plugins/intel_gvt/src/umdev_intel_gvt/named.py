"""Registers that are memory and nothing else here: workarounds, clock gating, cache control, frequencies.

Offsets and names: Intel Graphics PRM, Kaby Lake, volume 2c, and Linux, drivers/gpu/drm/i915; the list is what that
driver touches. masked: the upper half of a write enables bits of the lower one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from umdev.device import Block, Register, RegisterArray

if TYPE_CHECKING:
    from .vgpu import Vgpu  # noqa: F401  # the type in Block["Vgpu"]


class WorkaroundRegisters(Block["Vgpu"]):
    """What commands may write, too: the chicken bits of the render engine and its caches."""

    cs_privilege_2088 = Register(0x02088)
    cs_workaround_2090 = Register(0x02090)
    cs_chicken_20a0 = Register(0x020A0, masked=True)
    cs_debug_mode2 = Register(0x020D8, masked=True)
    cs_chicken_2580 = Register(0x02580, masked=True)
    common_slice = RegisterArray(0x07000, Register, count=256, masked=True)
    sampler_83a4 = Register(0x083A4, masked=True)
    sampler_83a8 = Register(0x083A8, masked=True)
    slice_chicken_9008 = Register(0x09008, masked=True)
    l3_garbage_control = Register(0x0B004)
    l3_scratch_lncf1 = Register(0x0B008)
    l3_sqc_4 = Register(0x0B118)
    l3_scratch_1 = Register(0x0B11C)
    sampler_e100 = Register(0x0E100, masked=True)
    half_slice_e180 = RegisterArray(0x0E180, Register, count=6, masked=True)
    row_chicken = RegisterArray(0x0E4F0, Register, count=2, masked=True)


class NamedRegisters(Block["Vgpu"]):
    """What only the driver writes."""

    mcr_selector = Register(0x00FDC)
    page_table_error = Register(0x02024)
    gtt_cache_enable = Register(0x04024)
    gam_ecochk = Register(0x04090)
    ring_fault = Register(0x04094)
    error = Register(0x040A0)
    done = Register(0x040B0)
    private_pat = RegisterArray(0x040E0, Register, count=2)
    gamt_eco = Register(0x04AB0)
    fault_tlb_data = RegisterArray(0x04B10, Register, count=2)
    l3_lra_1 = Register(0x04DD4)
    mmcd_misc_control = Register(0x04DDC)
    fbc_llc_read_control = Register(0x09044)
    clock_gating_4 = Register(0x0940C)
    rps_request = Register(0x0A008)
    rc_video_frequency = Register(0x0A00C)
    rp_control = Register(0x0A024)
    rp_up_threshold = Register(0x0A02C)
    rp_down_threshold = Register(0x0A030)
    rp_up_interval = Register(0x0A068)
    rp_down_interval = Register(0x0A06C)
    rp_idle_hysteresis = Register(0x0A070)
    pm_interrupt_mask = Register(0x0A168)
    mocs_l3 = RegisterArray(0x0B020, Register, count=32)
    guc_wopcm_size = Register(0x0C050)
    guc_wopcm_offset = Register(0x0C340)
    guc_timestamp = Register(0x0C3E8)
    mocs_render = RegisterArray(0x0C800, Register, count=64)
    mocs_video = RegisterArray(0x0C900, Register, count=64)
    mocs_video2 = RegisterArray(0x0CA00, Register, count=64)
    mocs_enhance = RegisterArray(0x0CB00, Register, count=64)
    mocs_blitter = RegisterArray(0x0CC00, Register, count=64)
    sampler_instdone = Register(0x0E160)
    row_instdone = Register(0x0E164)
    parity_chicken_1 = Register(0x42080)
    linetime_43224 = Register(0x43224)
    display_error_mask = Register(0x44050)
    display_arbiter = Register(0x45000)
    dc_state_enable = Register(0x45504)
    clock_gate_46408 = Register(0x46408)
    power_chicken_46430 = Register(0x46430)
    south_c6204 = Register(0xC6204)
