"""The parent: one GPU, shared out."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from umdev.device import DeviceType, InvalidArgument, NoInstanceLeft, Parent
from umdev_softgpu import FairShare, Scheduler

from .partition import MAXIMUM_VGPUS, Partition
from .shadow import SHADOW_MODES
from .vgpu import Vgpu
from .vgpu_types import TYPES

if TYPE_CHECKING:
    from collections.abc import Mapping

    from umdev.device import Clock, Device, DeviceContext
    from umdev.instances import InstanceClaims

ATTRIBUTES = {
    "weight": "share of the engines against other vGPUs, 1 to 16; the type's own unless set",
    "shadow": "copies of the driver's page tables: off (default), auto, emulate, trap, track",
    "cap": "most of the engines' time that it may take, 1 to 100 per cent; unset: no limit",
}
WEIGHTS = range(1, 17)
CAPS = range(1, 101)


class IntelGpu(Parent):
    """One process serves all vGPUs of it, since they share the engines."""

    def __init__(self, clock: Clock | None = None) -> None:
        """`clock`: of the engines; a ManualClock runs them by hand, in tests."""
        types = [DeviceType(type_.id, type_.name, Vgpu, type_.description, 1, ATTRIBUTES) for type_ in TYPES.values()]
        super().__init__("intel-gvt", types, capacity=MAXIMUM_VGPUS, shared_process=True)
        self.partition = Partition()
        self._clock = clock
        self._making = threading.Lock()
        self._scheduler: Scheduler | None = None

    @property
    def scheduler(self) -> Scheduler:
        """Of the engines; made when the first vGPU needs it."""
        with self._making:
            if self._scheduler is None:
                self._scheduler = Scheduler(FairShare(), name=self.name, clock=self._clock)
            return self._scheduler

    def close(self) -> None:
        """End the engines' thread, for tests and embedders; the vGPUs are closed before. It begins anew if need be."""
        if self._scheduler is not None:
            self._scheduler.close()
            self._scheduler = None

    def available_instances(self, type_id: str, claims: InstanceClaims | None = None) -> int:
        """How many more of a type the graphics memory and the fences have room for, counting every process."""
        used = [TYPES[claimed.type].share for claimed in self.claimed(claims).values()]
        return Partition.fitting(TYPES[self.type(type_id).id].share, used)

    def check_attributes(self, type_id: str, attributes: Mapping[str, str]) -> None:
        """Raises: as `Parent.check_attributes`; InvalidArgument for a weight or cap out of range, or no such mode."""
        super().check_attributes(type_id, attributes)
        _number(attributes, "weight", WEIGHTS, 0)
        _number(attributes, "cap", CAPS, 0)
        shadow = attributes.get("shadow", "off")
        if shadow not in SHADOW_MODES:
            raise InvalidArgument(f"shadow is one of {', '.join(SHADOW_MODES)}, not {shadow!r}")

    def create_device(self, context: DeviceContext) -> Device:
        """Raises: NoInstanceLeft."""
        assert context.type is not None
        type_ = TYPES[context.type.id]
        weight = _number(context.attributes, "weight", WEIGHTS, type_.weight)
        cap = _number(context.attributes, "cap", CAPS, CAPS[-1])
        others = [TYPES[c.type].share for uuid, c in self.claimed().items() if uuid != str(context.uuid)]
        if not Partition.fitting(type_.share, others):
            raise NoInstanceLeft(f"{self.name} has no instance of {type_.id} left: {len(others)} vGPUs are in use")
        number, slice_ = self.partition.allocate(type_.share)
        client = None
        try:
            client = self.scheduler.add_client(
                f"vGPU {number}", weight=weight, cap=None if cap == CAPS[-1] else cap / 100
            )
            return Vgpu(context, number, slice_, client, lambda: self.partition.free(number))
        except BaseException:
            if client is not None:
                client.close()
            self.partition.free(number)
            raise


def _number(attributes: Mapping[str, str], name: str, allowed: range, default: int) -> int:
    text = attributes.get(name)
    if text is None:
        return default
    if not text.isascii() or not text.isdecimal() or int(text) not in allowed:
        raise InvalidArgument(f"{name} is a whole number from {allowed[0]} to {allowed[-1]}, not {text!r}")
    return int(text)
