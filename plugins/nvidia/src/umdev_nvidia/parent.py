"""The parent: one GPU of a Tesla M10, shared out."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from umdev.device import DeviceType, InvalidArgument, NoInstanceLeft, Parent
from umdev_softgpu import Scheduler

from . import parameters
from .config_space import identity
from .sharing import Sharing
from .vgpu import Vgpu
from .vgpu_types import TOTAL_MEGABYTES, TYPES

if TYPE_CHECKING:
    from collections.abc import Mapping

    from umdev.device import Clock, Device, DeviceContext
    from umdev.instances import InstanceClaims
    from umdev_softgpu import Client

    from .vgpu_types import VgpuType

ATTRIBUTES = {
    "scheduler": "best-effort (default), equal-share or fixed-share, /N for slices of N ms; one for all vGPUs",
    "vgpu_params": "as in a vGPU's file of that name: frame_rate_limiter=0 or 1 (default), disable_vnc=0 or 1",
}


class TeslaM10(Parent):
    """One process serves all vGPUs of it, since they share the engine."""

    def __init__(self, clock: Clock | None = None) -> None:
        """`clock`: of the engine; a ManualClock runs it by hand, in tests."""
        types = [
            DeviceType(type_.id, type_.name, _device_class(type_), type_.description, type_.megabytes, ATTRIBUTES)
            for type_ in TYPES.values()
        ]
        super().__init__("nvidia", types, capacity=TOTAL_MEGABYTES, shared_process=True)
        self.sharing = Sharing()
        """What the vGPUs in use share the engine by."""
        self._clock = clock
        self._joining = threading.Lock()
        self._scheduler: Scheduler | None = None

    def close(self) -> None:
        """End the engine's thread, for tests and embedders; the vGPUs are closed before. It begins anew if need be."""
        if self._scheduler is not None:
            self._scheduler.close()
            self._scheduler = None

    def available_instances(self, type_id: str, claims: InstanceClaims | None = None) -> int:
        """How many more of a type there is room for, counting every process; 0 beside vGPUs of another size."""
        type_ = TYPES[self.type(type_id).id]
        used = [TYPES[claimed.type].megabytes for claimed in self.claimed(claims).values()]
        return 0 if set(used) - {type_.megabytes} else max(0, type_.maximum - len(used))

    def check_attributes(self, type_id: str, attributes: Mapping[str, str]) -> None:
        """Raises: as `Parent.check_attributes`; InvalidArgument for parameters and schedulers that make no sense."""
        super().check_attributes(type_id, attributes)
        parameters.parse(attributes.get("vgpu_params", ""))
        if "scheduler" in attributes:
            Sharing.parse(attributes["scheduler"])

    def create_device(self, context: DeviceContext) -> Device:
        """Raises: NoInstanceLeft, InvalidArgument for a scheduler that contradicts the one in use."""
        assert context.type is not None
        type_ = TYPES[context.type.id]
        others = {TYPES[c.type].megabytes for uuid, c in self.claimed().items() if uuid != str(context.uuid)}
        if others - {type_.megabytes}:
            size = ", ".join(f"{other} MiB" for other in sorted(others))
            raise NoInstanceLeft(
                f"{self.name} has no instance of {type_.id} left: vGPUs of one GPU have one size, and {size} is in use"
            )
        wanted = parameters.parse(context.attributes.get("vgpu_params", ""))
        asked = context.attributes.get("scheduler")
        client = self._join(context, type_, Sharing.parse(asked) if asked is not None else None)
        try:
            if wanted[parameters.FRAME_RATE_LIMITER] and self.sharing.limits_frames:
                client.frame_rate = type_.frames
            return context.type.device(context, type_.megabytes, client)  # type: ignore[call-arg]  # a Vgpu
        except BaseException:
            client.close()
            raise

    def _join(self, context: DeviceContext, type_: VgpuType, asked: Sharing | None) -> Client:
        """An account with the scheduler, which the first vGPU makes. Raises: InvalidArgument."""
        with self._joining:
            if self._scheduler is not None and not self._scheduler.clients:
                self.close()
            if self._scheduler is None:
                self.sharing = asked or Sharing()
                self._scheduler = Scheduler(self.sharing.policy(type_.maximum), name=self.name, clock=self._clock)
            elif asked not in (None, self.sharing):
                raise InvalidArgument(
                    f"scheduler {asked}: the vGPUs in use share the GPU by {self.sharing}; ask for that, or stop them"
                )
            return self._scheduler.add_client(str(context.uuid))


def _device_class(type_: VgpuType) -> type[Vgpu]:
    """The model with the type's identity."""
    return type("Vgpu", (Vgpu,), {"pci": identity(type_.subsystem), "__doc__": type_.name, "__module__": __name__})
