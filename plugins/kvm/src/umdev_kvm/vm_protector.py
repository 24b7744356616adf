"""The process that protects the memory of VMMs that are not ours: stock QEMU with the preload library.

One for each user and runtime directory, so that a device's process that dies takes nobody's protection with it. Inside,
each VMM has a protector of its own (userfaultfd, threads, table of areas), and a device that takes its time over a
store holds up nobody else. It starts with the first device process that may need it and ends when nobody is connected
any more. When it dies, the kernel wakes every blocked vCPU.
"""

from __future__ import annotations

import errno
import logging
import os
import select
import signal
import socket
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

from umdev import runtime
from umdev.errors import NotSupported, ProtocolError, StateError, UmdevError
from umdev.hypervisor import NativeClient, ProtectMode

from . import vm_protector_wire as wire
from .vm_protector_vm import RemoteDevice, Vm
from .vm_protector_wire import Operation

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["VmProtector", "main"]

_log = logging.getLogger("umdev.kvm.protector")
_RETRY_SECONDS = 0.1
_MODES = {1: ProtectMode.TRAP, 2: ProtectMode.TRACK}


class _Refused(Exception):
    """A request failed with an errno and a text."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


class VmProtector:
    """Serves VMMs and devices that connect to a listening socket, a thread for each."""

    def __init__(self, listener: socket.socket, path: Path, patience: float = wire.PATIENCE) -> None:
        """Takes the listener; `path` is removed at the end. `patience`: see `wire.PATIENCE`."""
        self.patience = patience
        self._listener = listener
        self._path = path
        self._vms: dict[int, Vm] = {}
        self._peers: set[socket.socket] = set()
        self._guard = threading.Lock()

    def run(self) -> None:
        """Serve until nobody is connected."""
        while True:
            try:
                link, _ = self._listener.accept()
            except OSError as error:
                if error.errno == errno.EINVAL:  # shut down by the last peer's thread
                    return
                _log.warning("nobody can connect: %s", error)  # too many are, perhaps: those go on
                time.sleep(_RETRY_SECONDS)
                continue
            pid, uid = wire.peer(link)
            if uid not in (0, os.getuid()):
                _log.warning("process %d of user %d may not connect", pid, uid)
                link.close()
                continue
            with self._guard:
                self._peers.add(link)
            try:
                threading.Thread(target=self._converse, args=(link, pid), daemon=True).start()
            except RuntimeError as error:  # no more threads are to be had; those who are served go on
                _log.warning("process %d can't be served: %s", pid, error)
                self._leave(link)
                time.sleep(_RETRY_SECONDS)

    def _converse(self, link: socket.socket, pid: int) -> None:
        peer = _Peer(self, link, pid)
        try:
            while peer.answer():
                pass
        except (OSError, UmdevError) as error:
            _log.warning("process %d: %s", pid, error)
        finally:
            peer.close()
            self._leave(link)

    def _leave(self, link: socket.socket) -> None:
        with self._guard:
            self._peers.discard(link)
        try:
            try:
                self._end_without_peers()
            except StateError:
                link.close()  # the lock needs a descriptor, and they may have run out
                self._end_without_peers()
        except StateError as error:
            _log.warning("a peer has left; whether it was the last one is for the next to see: %s", error)
        finally:
            link.close()  # not before: whoever waits for this finds the socket gone

    def _end_without_peers(self) -> None:
        """Stop listening if nobody is connected, or about to be. Raises: StateError (the runtime directory)."""
        # The directory's lock: whoever starts a protector holds it while it looks for one.
        with runtime.locked(self._path.parent) as directory:
            with self._guard:
                last = not self._peers
            if last and not self._waiting():
                self._path.unlink(missing_ok=True)
                self._listener.shutdown(socket.SHUT_RDWR)
                runtime.prune(directory)

    def _waiting(self) -> bool:
        return bool(select.select([self._listener], [], [], 0)[0])

    # For peers.

    def lend(self, vm: Vm) -> None:
        """A VMM has connected; its process may have done so before, as another program."""
        with self._guard:
            before, self._vms[vm.pid] = self._vms.get(vm.pid), vm
        if before is not None:
            before.close()

    def forget(self, vm: Vm) -> None:
        """The VMM has ended."""
        with self._guard:
            if self._vms.get(vm.pid) is vm:
                del self._vms[vm.pid]
        vm.close()

    def find(self, pid: int) -> Vm:
        """The VMM of that process id. Raises: _Refused."""
        with self._guard:
            vm = self._vms.get(pid)
            orphans = [other.pid for other in self._vms.values() if other.orphaned]
        if vm is None and orphans:
            raise _Refused(
                errno.ESRCH,
                f"process {orphans[0]} lent its memory and has ended, but a child of it lives: QEMU's -daemonize takes "
                f"the memory to a new process (such as {pid}), out of reach. Start QEMU without -daemonize",
            )
        if vm is None:
            raise _Refused(errno.ENOENT, f"process {pid} has lent its memory to no protector")
        if vm.refusal:
            raise _Refused(errno.EPERM, vm.refusal)
        return vm


class _Peer:
    """One connection: a VMM, a device in one mode, or somebody who wants the protector to stay."""

    def __init__(self, protector: VmProtector, link: socket.socket, pid: int) -> None:
        self._protector = protector
        self._link = link
        self._pid = pid
        self._vm: Vm | None = None
        self._device: RemoteDevice | None = None
        self._answers: dict[int, Callable[[bytes], tuple[int, bytes]]] = {
            Operation.STAY: lambda _: (0, b""),
            Operation.AREAS: self._areas,
            Operation.ARM: self._arm,
            Operation.DISARM: self._disarm,
            Operation.COLLECT: lambda _: (0, wire.body(self._client().collect())),
            Operation.PAGES: lambda _: (0, wire.body([self._client().pages])),
            Operation.CLOSE: self._close,
        }

    def answer(self) -> bool:
        """Receive one request and answer it; False when the peer has gone. Raises: OSError, UmdevError."""
        descriptors: list[int] = []
        try:
            request = wire.receive(self._link, descriptors)
            if request is None:
                return False
            operation, body = request
            try:
                status, reply = self._serve(operation, body, descriptors)
            except _Refused as refusal:
                status, reply = -refusal.code, str(refusal).encode()
            except ProtocolError:
                raise
            except UmdevError as error:
                status, reply = -(error.errno or errno.EIO), str(error).encode()
            wire.send(self._link, status, reply)
            return True
        finally:
            for descriptor in descriptors:
                os.close(descriptor)

    def close(self) -> None:
        """Release what this peer had."""
        if self._device is not None:
            self._device.close()
        if self._vm is not None:
            self._protector.forget(self._vm)

    def _serve(self, operation: int, body: bytes, descriptors: list[int]) -> tuple[int, bytes]:
        if operation == Operation.LEND and self._vm is None:
            return self._lend(body, descriptors)
        if operation == Operation.CLIENT and self._device is None:
            return self._become(body, descriptors)
        answer = self._answers.get(operation)
        if answer is None:
            raise ProtocolError(f"operation {operation} has no place here")
        return answer(body)

    def _lend(self, body: bytes, descriptors: list[int]) -> tuple[int, bytes]:
        if len(body) != wire.LEND.size:
            raise ProtocolError("a preload library of another version")
        version, code, how = wire.LEND.unpack(body)
        if version != wire.VERSION or (code == 0 and len(descriptors) != 2):
            raise ProtocolError(f"a preload library of version {version} with {len(descriptors)} descriptors")
        lent = list(descriptors)
        descriptors.clear()
        self._vm = Vm(self._pid, lent, code, how)
        self._protector.lend(self._vm)
        _log.info("process %d: %s", self._pid, self._vm.refusal or "has lent its memory")
        return 0, b""

    def _become(self, body: bytes, descriptors: list[int]) -> tuple[int, bytes]:
        if len(body) != wire.CLIENT.size or len(descriptors) != 1:
            raise ProtocolError("a device needs a process id, a mode and a socket")
        pid, number = wire.CLIENT.unpack(body)
        mode = _MODES.get(number)
        if mode is None:
            raise NotSupported(f"there is no mode {number}")
        vm = self._protector.find(pid)
        events = os.dup(descriptors[0])
        self._device = RemoteDevice(vm, mode, events, self._link, self._protector.patience)
        return 0, vm.guest.mechanism.encode()

    def _areas(self, body: bytes) -> tuple[int, bytes]:
        if len(body) != wire.FILE.size:
            raise ProtocolError("a file is a device and an inode")
        device, inode = wire.FILE.unpack(body)
        return 0, b"".join(wire.AREA.pack(*area) for area in self._opened().vm.areas((device, inode)))

    def _arm(self, body: bytes) -> tuple[int, bytes]:
        code, failed = self._client().arm(wire.numbers(body))
        return 0, wire.body((code, failed))

    def _disarm(self, body: bytes) -> tuple[int, bytes]:
        self._client().disarm(wire.numbers(body))
        return 0, b""

    def _close(self, _: bytes) -> tuple[int, bytes]:
        if self._device is not None:
            self._device.close()
        return 0, b""

    def _opened(self) -> RemoteDevice:
        if self._device is None:
            raise StateError("this connection is no device's")
        return self._device

    def _client(self) -> NativeClient:
        return self._opened().client


def main() -> int:
    """Serve the listening socket that is standard input; the one argument is its path."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    os.chdir("/")
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a ^C in the terminal of a device is meant for the device
    listener = socket.socket(fileno=os.dup(0))
    VmProtector(listener, Path(sys.argv[1]), wire.patience()).run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
