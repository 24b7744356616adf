"""Parents and the types they offer, in mediated devices' own terms (Linux, vfio-mediated-device.rst)."""

from __future__ import annotations

import uuid as _uuid
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from ..errors import InvalidArgument, NotFound
from ..instances import Claim, Claimed, InstanceClaims
from .clock import Clock

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from .model import Device


@dataclass(frozen=True, slots=True)
class DeviceType:
    """One kind of device that a parent can be asked for.

    `units` is what an instance takes of the parent's `capacity` (ports of a card, megabytes of a frame buffer).
    """

    id: str
    name: str
    device: type[Device]
    description: str = ""
    units: int = 1
    attributes: Mapping[str, str] = field(default_factory=dict)
    """Attributes that `define` and `start` may set: name -> what it means."""

    device_api: ClassVar[str] = "vfio-pci"


@dataclass(frozen=True, slots=True)
class DeviceContext:
    """What a device is made with. `Device()` without one stands alone, as in tests."""

    uuid: _uuid.UUID = field(default_factory=_uuid.uuid4)
    parent: Parent | None = None
    type: DeviceType | None = None
    attributes: Mapping[str, str] = field(default_factory=dict)
    clock: Clock = field(default_factory=Clock)
    claim: Claim | None = None


class Parent:
    """What can be shared out: subclass or instantiate it, and name it in the entry-point group `umdev.parents`."""

    def __init__(
        self, name: str, types: Sequence[DeviceType], *, capacity: int = 16, shared_process: bool = False
    ) -> None:
        """`shared_process`: all devices of this parent live in one process, since they share state."""
        self.name = name
        self.types = {type_.id: type_ for type_ in types}
        self.capacity = capacity
        self.shared_process = shared_process
        self.devices: dict[_uuid.UUID, Device] = {}
        """Devices of this parent that live in this process."""

    def type(self, type_id: str) -> DeviceType:
        """Raises: NotFound, with the types that exist."""
        try:
            return self.types[type_id]
        except KeyError:
            offered = ", ".join(self.types)
            raise NotFound(f"parent {self.name} has no type {type_id!r}; it offers: {offered}") from None

    def available_instances(self, type_id: str, claims: InstanceClaims | None = None) -> int:
        """How many more of a type fit, counting every process of this user. Raises: NotFound."""
        used = sum(claimed.units for claimed in self.claimed(claims).values())
        return max(0, self.capacity - used) // self.type(type_id).units

    def claimed(self, claims: InstanceClaims | None = None) -> dict[str, Claimed]:
        """What of this parent is in use, by UUID, in every process of this user; for parents that count otherwise."""
        return (claims or InstanceClaims()).used(self.name)

    def check_attributes(self, type_id: str, attributes: Mapping[str, str]) -> None:
        """Refuse what no device of the type can be made with, whatever is in use; `create` and definitions ask it.

        A parent that takes only some values overrides it, and asks this one first. It changes nothing.

        Raises: NotFound (type), InvalidArgument (an attribute, or its value).
        """
        type_ = self.type(type_id)
        for name in attributes:
            if name not in type_.attributes:
                known = ", ".join(type_.attributes) or "none"
                raise InvalidArgument(f"type {type_id} has no attribute {name!r}; it has: {known}")

    def create(
        self,
        type_id: str,
        uuid: str | _uuid.UUID | None = None,
        *,
        attributes: Mapping[str, str] | None = None,
        clock: Clock | None = None,
        claims: InstanceClaims | None = None,
    ) -> Device:
        """Make a device and claim its instance; `device.close()` gives it back, and so does the end of the process.

        Raises: NotFound (type), InvalidArgument (UUID or attribute), Conflict (UUID in use), NoInstanceLeft, what the
        model raises, and an ExceptionGroup of what add-ons raise. After a failure nothing is claimed.
        """
        from ..plugins import plugins

        type_ = self.type(type_id)
        identity = parse_uuid(uuid) if uuid is not None else _uuid.uuid4()
        self.check_attributes(type_id, attributes or {})
        claim = (claims or InstanceClaims()).claim(self.name, type_id, str(identity), type_.units, self.capacity)
        try:
            context = DeviceContext(identity, self, type_, dict(attributes or {}), clock or Clock(), claim)
            device = self.create_device(context)
        except BaseException:
            claim.close()
            raise
        self.devices[identity] = device
        try:
            plugins().tell("umdev_device_created", device=device)
        except BaseException:
            device.close()
            raise
        return device

    def create_device(self, context: DeviceContext) -> Device:
        """Make the model. Override it when a device needs something of its parent."""
        assert context.type is not None
        return context.type.device(context)


def parse_uuid(text: str | _uuid.UUID) -> _uuid.UUID:
    """Raises: InvalidArgument for anything but the canonical 8-4-4-4-12 form."""
    if isinstance(text, _uuid.UUID):
        return text
    try:
        parsed = _uuid.UUID(text)
    except ValueError:
        parsed = None
    if parsed is None or str(parsed) != text.lower():
        raise InvalidArgument(f"{text!r} is no UUID; one looks like {_uuid.uuid4()}")
    return parsed
