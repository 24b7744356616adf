"""The parent: 24 serial ports, shared out one or two at a time."""

from __future__ import annotations

from umdev.device import DeviceType, Parent

from .card import Mtty1, Mtty2

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


parent = MttyParent()
