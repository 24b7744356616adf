"""What a protector keeps for one VMM, and for each device that asks about its pages."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from umdev.errors import NotSupported, ProtectError, StateError
from umdev.hypervisor import GuestProtector, NativeClient, ProtectMode, Userfault, adopt_userfault

from . import vm_protector_wire as wire
from ._protect import ffi, lib
from .vm_protector_areas import Area, areas

if TYPE_CHECKING:
    import socket
    from collections.abc import Sequence

_WAYS = {1: "an inherited /dev/userfaultfd", 2: "/dev/userfaultfd", 3: "userfaultfd(2)"}


class Vm:
    """A VMM that has lent its address space, or has said why it can't. Any thread."""

    def __init__(self, pid: int, lent: Sequence[int], code: int, how: int) -> None:
        """Takes the descriptors: none with a `code` (errno), else one for each kind of userfaultfd."""
        self.pid = pid
        self.refusal: str | None = None
        """Why nothing can be protected."""
        self._how = _WAYS.get(how, "an unknown way")
        self._lent = dict(zip((False, True), lent, strict=False))
        self._lock = threading.Lock()  # of _known; taken before the guest's
        self._known: dict[tuple[int, int], list[Area]] = {}
        self.guest = GuestProtector(self._userfault, f"/proc/{pid}/pagemap")
        if code:
            self.refusal = f"the VMM (process {pid}) could open no userfaultfd by {self._how}: {os.strerror(code)}"

    @property
    def orphaned(self) -> bool:
        """Whether the process that lent its address space has ended, while a child of it goes on."""
        return not Path(f"/proc/{self.pid}").exists()

    def areas(self, file: tuple[int, int]) -> list[Area]:
        """Where the VMM has mapped the file now; all of it is registered.

        Raises: ProtectorBusy, ProtectError.
        """
        with self._lock:
            try:
                found = areas(self.pid, file)
            except OSError as error:
                raise _gone(self.pid, error) from error
            known = self._known.setdefault(file, [])
            for area in [old for old in known if old not in found]:
                self.guest.remove_memory(area.address)
                known.remove(area)
            for area in found:
                if area not in known:
                    self._forget_at(area)
                    self.guest.add_memory(file, area.offset, area.address, area.length)
                    known.append(area)
            return found

    def close(self) -> None:
        """Let every store go on; devices' pages are lost. May be called twice."""
        self.guest.close()
        for kind in (False, True):
            descriptor = self._lent.pop(kind, None)
            if descriptor is not None:
                os.close(descriptor)

    def _forget_at(self, area: Area) -> None:
        """Another file was mapped there before."""
        for known in self._known.values():
            for old in [old for old in known if _overlap(old, area)]:
                self.guest.remove_memory(old.address)
                known.remove(old)

    def _userfault(self, asynchronous: bool) -> Userfault:
        # The only copy: one that stayed here would keep the mappings registered when the protector has let go.
        descriptor = self._lent.pop(asynchronous, None)  # atomic; the guest's lock is held, so no other may be taken
        if descriptor is None:
            raise NotSupported("the userfaultfd that the VMM lent is used up: start the VMM anew")
        return adopt_userfault(descriptor, f"{self._how} of process {self.pid}", asynchronous=asynchronous)


class RemoteDevice:
    """A device in another process, in one mode: its pages, and the socket by which it hears of stores."""

    def __init__(
        self, vm: Vm, mode: ProtectMode, events: int, control: socket.socket, patience: float = wire.PATIENCE
    ) -> None:
        """Takes `events`, borrows `control`; `patience`: see `wire.PATIENCE`.

        Raises: NotSupported, ProtectorBusy, ProtectError, StateError, OSError.
        """
        self.vm = vm
        try:
            self._cancel = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        except OSError:
            os.close(events)
            raise
        self._remote = ffi.new("umdev_kvm_remote *")
        self._remote.events, self._remote.control, self._remote.cancel = events, control.fileno(), self._cancel
        self._remote.patience = int(patience * 1000)
        self._client: NativeClient | None = None
        function = int(ffi.cast("uintptr_t", ffi.addressof(lib, "umdev_kvm_remote_notify")))
        context = int(ffi.cast("uintptr_t", self._remote))
        try:
            self._client = NativeClient(vm.guest, mode, None, None, notify=(function, context))
        except BaseException:
            self.close()
            raise

    @property
    def client(self) -> NativeClient:
        """Its pages. Raises: StateError (closed)."""
        if self._client is None:
            raise StateError("the device has closed its protector")
        return self._client

    def close(self) -> None:
        """Let go of its pages; a notification that is waited for counts as answered. May be called twice."""
        if self._cancel < 0:
            return
        os.eventfd_write(self._cancel, 1)
        client, self._client = self._client, None
        if client is not None:
            client.close()
        for descriptor in (self._cancel, self._remote.events):
            os.close(descriptor)
        self._cancel = -1


def _overlap(one: Area, two: Area) -> bool:
    return one.address < two.address + two.length and two.address < one.address + one.length


def _gone(pid: int, error: OSError) -> ProtectError:
    code = error.errno or errno.EIO
    text = "has ended" if code in (errno.ENOENT, errno.ESRCH) else f"can't be looked at: {os.strerror(code)}"
    failure = ProtectError(f"the VMM (process {pid}) {text}")
    failure.errno = code
    return failure
