"""The parent: 24 serial ports, shared out one or two at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING

from umdev.device import DeviceType, Parent

from .card import Mtty1, Mtty2
from .port import check_place

if TYPE_CHECKING:
    from collections.abc import Mapping

PORTS = 24
PLACE = "where the port goes on the host: pty (default) or unix:PATH"


class MttyParent(Parent):
    """One process serves all cards, since they share the ports."""

    def __init__(self) -> None:
        types = [
            DeviceType("mtty-1", "Single port serial", Mtty1, "one 16550A port", 1, {"port0": PLACE}),
            DeviceType("mtty-2", "Dual port serial", Mtty2, "two 16550A ports", 2, {"port0": PLACE, "port1": PLACE}),
        ]
        super().__init__("mtty", types, capacity=PORTS, shared_process=True)

    def check_attributes(self, type_id: str, attributes: Mapping[str, str]) -> None:
        """Raises: as `Parent.check_attributes`; InvalidArgument where a port can't go."""
        super().check_attributes(type_id, attributes)
        for where in attributes.values():
            check_place(where)


parent = MttyParent()
