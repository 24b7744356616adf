"""An ioreq server: what makes Xen give a domain's accesses to this process (xen/hvm/dm_op.h)."""

from __future__ import annotations

import contextlib
import errno
import mmap
from typing import TYPE_CHECKING

from umdev.errors import HypervisorError, NotSupported

from .libraries import DEVICE_MODEL, EVENT_CHANNEL, FOREIGN_MEMORY, ffi

if TYPE_CHECKING:
    from .handles import Handles

__all__ = ["IoreqServer"]

_RESOURCE, _RING_FRAME = 0, 1
"""XENMEM_resource_ioreq_server, and the first frame after the one for buffered requests (xen/memory.h)."""
_SLOTS = 128
"""Processors whose requests one page holds."""
_SLOT_SIZE, _PORT = 32, 24
"""Of struct ioreq: its size, and where the event channel's port stands (xen/hvm/ioreq.h)."""
_IOREQ_SERVER_PAGE, _RAM_PAGE = 4, 0
"""HVMMEM_ioreq_server, HVMMEM_ram_rw (xen/hvm/hvm_op.h)."""
_WRITES = 2
"""XEN_DMOP_IOREQ_MEM_ACCESS_WRITE."""
_PASSING = (errno.EAGAIN, errno.EINTR, errno.ENOMEM)
"""What a call may fail with though nothing is wrong with the domain."""


class IoreqServer:
    """A server of one domain, enabled, with its ring page mapped and every processor's event channel bound.

    Any thread may call it. Errors are Xen's, as HypervisorError; `gone` says whether the domain still has it.
    """

    def __init__(self, handles: Handles) -> None:
        """Raises: HypervisorError, NotSupported (more than 128 processors, a library too old)."""
        self._handles = handles
        self._domain = handles.domain
        self._resource = ffi.NULL
        if handles.vcpus > _SLOTS:
            raise NotSupported(f"domain {self._domain} has {handles.vcpus} processors; {_SLOTS} fit on a ring page")
        number = ffi.new("uint16_t *")
        DEVICE_MODEL.call("xendevicemodel_create_ioreq_server", handles.device_model, self._domain, 0, number)
        self._number = int(number[0])
        self._closed = False
        self.ports: list[int] = []
        """Of each processor's event channel, here."""
        try:
            self.page = self._map_page()
            """Where the ring page is mapped."""
            self._call("set_ioreq_server_state", 1)  # which fills the ports in
            page = ffi.cast("uint8_t *", self.page)
            for index, channel in enumerate(handles.channels):
                remote = ffi.cast("uint32_t *", page + index * _SLOT_SIZE + _PORT)[0]
                self.ports.append(EVENT_CHANNEL.call("xenevtchn_bind_interdomain", channel, self._domain, remote))
        except BaseException:
            self.close()
            raise

    @property
    def gone(self) -> bool:
        """Whether the domain has been destroyed, or is being: Xen takes its servers away first."""
        try:
            self._call("get_ioreq_server_info", ffi.NULL, ffi.NULL, ffi.NULL)
        except HypervisorError as error:
            return error.errno not in _PASSING
        return False

    def map_range(self, start: int, length: int, *, io: bool) -> None:
        """Have accesses to addresses or ports. Raises: HypervisorError."""
        self._call("map_io_range_to_ioreq_server", int(not io), start, start + length - 1)

    def unmap_range(self, start: int, length: int, *, io: bool) -> None:
        """Raises: HypervisorError."""
        self._call("unmap_io_range_from_ioreq_server", int(not io), start, start + length - 1)

    def map_function(self, slot: int) -> None:
        """Have the accesses to a slot's configuration space. Raises: HypervisorError."""
        self._call("map_pcidev_to_ioreq_server", 0, 0, slot, 0)

    def unmap_function(self, slot: int) -> None:
        """Raises: HypervisorError."""
        self._call("unmap_pcidev_from_ioreq_server", 0, 0, slot, 0)

    def own_stores(self, owned: bool) -> None:
        """Have stores to pages that `set_stores_emulated` names. Raises: HypervisorError (EBUSY: another has them)."""
        self._call("map_mem_type_to_ioreq_server", _IOREQ_SERVER_PAGE, _WRITES if owned else 0)

    def set_stores_emulated(self, frame: int, count: int, *, emulated: bool) -> None:
        """Stores to pages come here, or land by themselves again. Raises: HypervisorError."""
        DEVICE_MODEL.call(
            "xendevicemodel_set_mem_type", self._handles.device_model, self._domain,
            _IOREQ_SERVER_PAGE if emulated else _RAM_PAGE, frame, count,
        )  # fmt: skip

    def close(self) -> None:
        """Take the server away from the domain, if it is still there. May be called twice; never raises."""
        if self._closed:
            return
        self._closed = True
        # A domain that is gone has taken all of this with it.
        with contextlib.suppress(HypervisorError):
            self._call("set_ioreq_server_state", 0)
        with contextlib.suppress(HypervisorError):
            self._call("destroy_ioreq_server")
        for channel, port in zip(self._handles.channels, self.ports, strict=False):
            with contextlib.suppress(HypervisorError):
                EVENT_CHANNEL.call("xenevtchn_unbind", channel, port)
        if self._resource != ffi.NULL:
            FOREIGN_MEMORY.call("xenforeignmemory_unmap_resource", self._handles.foreign_memory, self._resource)
            self._resource = ffi.NULL

    def _map_page(self) -> int:
        address = ffi.new("void **", ffi.NULL)
        self._resource = FOREIGN_MEMORY.open(
            "xenforeignmemory_map_resource", self._handles.foreign_memory, self._domain, _RESOURCE, self._number,
            _RING_FRAME, 1, address, mmap.PROT_READ | mmap.PROT_WRITE, 0,
        )  # fmt: skip
        return int(ffi.cast("uintptr_t", address[0]))

    def _call(self, name: str, *arguments: object) -> None:
        DEVICE_MODEL.call(f"xendevicemodel_{name}", self._handles.device_model, self._domain, self._number, *arguments)
