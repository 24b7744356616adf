"""The parent: storage, shared out by the mebibyte."""

from __future__ import annotations

from umdev.device import DeviceType, Parent

from .controller import Nvme

CAPACITY = 4096
STORE = "where the blocks are kept: memory (default; gone with the device) or file:PATH (made if it is missing)"


class Nvme64M(Nvme):
    """A controller with a namespace of 64 MiB."""

    capacity = 64 << 20


class Nvme1G(Nvme):
    """A controller with a namespace of 1 GiB."""

    capacity = 1 << 30


parent = Parent(
    "nvme",
    [
        DeviceType("nvme-64m", "NVMe 64 MiB", Nvme64M, "one namespace of 64 MiB", 64, {"store": STORE}),
        DeviceType("nvme-1g", "NVMe 1 GiB", Nvme1G, "one namespace of 1 GiB", 1024, {"store": STORE}),
    ],
    capacity=CAPACITY,
)
