"""The state of what C answers by itself: the registers that a driver uses for each submission.

About ten accesses of each submission go to the interrupt tree and the submission ports. Their handlers are in C
(native/interrupts.c, native/submission.c), so none of them waits for the interpreter, which an engine may be using.
What they know lies in registers and in `gvt_vgpu`; everything else, Python reads and changes there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from umdev.device import api_address
from umdev_softgpu import api_address as softgpu_address

from ._fast import ffi, lib
from .engines import ENGINES

if TYPE_CHECKING:
    from umdev_softgpu import Bell

    from .engines import EngineSpec
    from .interrupt_tree import EngineEvent, EventBlock
    from .ring import RingRegisters
    from .vgpu import Vgpu

lib.gvt_use(ffi.cast("void *", api_address()))
STRANGER = "a submission by a driver that does not know that this is a vGPU"
DISABLED = "a submission to an engine whose run list is not enabled"


class HotState:
    """Of one vGPU. The device lock is held for every call."""

    def __init__(self, vgpu: Vgpu) -> None:
        """Makes the handlers of `vgpu` work: in `on_open`."""
        native: Any = ffi.new("gvt_vgpu *")
        self.native = native
        tree = vgpu.registers.interrupts
        native.tree.device = ffi.cast("void *", vgpu.native.address)
        native.tree.master = _cell(tree.master)
        blocks: list[EventBlock] = [*tree.gt, tree.pcu]
        for events, block in zip(native.tree.blocks, blocks, strict=True):
            events.imr, events.iir, events.ier = _cell(block.imr), _cell(block.iir), _cell(block.ier)
            events.offset = block.base + type(block).iir.offset
        vgpu.native.set_user_data(native)

    def engine(self, spec: EngineSpec, ring: RingRegisters, bell: Bell) -> Any:
        """The `gvt_engine *` of an engine, made to work; valid as long as this object."""
        engine = ffi.addressof(self.native.engines, ENGINES.index(spec))
        engine.block, engine.shift = spec.interrupt_block, spec.shift
        engine.softgpu, engine.bell = (ffi.cast("void *", at) for at in (softgpu_address(), bell.pointer))
        engine.port_offset = ring.base + type(ring).submit_port.offset
        engine.mask, engine.mode = _cell(ring.interrupt_mask), _cell(ring.mode)
        engine.status, engine.running = _cell(ring.execlist_status), _cell(ring.execlist_context)
        return engine

    def raise_event(self, spec: EngineSpec, event: EngineEvent) -> None:
        """An event of an engine: a bit of the tree, unless a mask keeps it out."""
        lib.gvt_engine_raise(self.native, ENGINES.index(spec), event)

    def reset_interrupts(self) -> None:
        """The registers are reset already."""
        lib.gvt_tree_reset(ffi.addressof(self.native, "tree"))

    @property
    def refused(self) -> dict[str, int]:
        """Submissions that came to nothing, since the device was made, by why."""
        engines = self.native.engines
        counts = {
            STRANGER: sum(engine.refused_strangers for engine in engines),
            DISABLED: sum(engine.refused_disabled for engine in engines),
        }
        return {why: count for why, count in counts.items() if count}


def _cell(register: Any) -> Any:
    return ffi.cast("uint32_t *", register.address)


assert len(ENGINES) == lib.GVT_ENGINES
