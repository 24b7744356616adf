"""The process that hosts devices: one device, or all devices of a parent whose devices share state.

It serves each device's bus in a thread, answers its control socket, and ends with its last device, on SIGTERM or
SIGINT. Whatever way it ends, `hosts.tidy` removes what it may leave.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import select
import signal
import sys
import threading
import time
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import msgspec
from umdev.errors import Conflict, NotFound, NotSupported, ProtocolError, StateError, UmdevError
from umdev.plugins import plugins

from . import control, hosts, vmm
from .describe import describe
from .failures import Exit, exit_code
from .tracing import Tracing

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterator
    from types import FrameType

    from umdev.device import Device, Parent

__all__ = ["Host", "Spec", "main"]

_log = logging.getLogger("umdev.host")
_REQUEST_SECONDS = 10.0
_PARTING_SECONDS = 1.0  # who asked for the end gets the answer
_ACCEPT_PAUSE = 0.1
"""Seconds before another try when a connection can't be accepted."""


class Spec(msgspec.Struct):
    """What a host process is started for."""

    runtime: str
    name: str
    parent: str
    bus: str
    first: control.Add
    lock: int
    """Descriptor that locks the host's folder."""
    ready: int
    """Descriptor that the reply to `first` is written to."""


class _Served:
    """A device and the bus server that serves it, in a thread of its own."""

    def __init__(self, device: Device, server: Any, ended: Callable[[str], None]) -> None:
        self.device = device
        self.server = server
        self._ended = ended
        self._thread = threading.Thread(target=self._run, name=f"serve {device.context.uuid}", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self.server.run()
        except Exception:  # noqa: BLE001 - a bus may raise anything; the host's other devices go on
            _log.exception("%s: its bus failed", self.device)
        self._ended(str(self.device.context.uuid))

    def close(self) -> None:
        """End the server, then the device."""
        try:
            self.server.stop()
            self.join()
            self.server.close()
        finally:
            self.device.close()

    def join(self) -> None:
        """Wait for the thread's end: a bus that ended by itself closes its device there."""
        if threading.current_thread() is not self._thread:
            self._thread.join()


class Host:
    """Devices of one parent on one bus, with the control socket for them. Use as a context manager."""

    def __init__(self, runtime: Path, folder: Path, lock: int, parent: Parent, bus: str, *, driver: Any = None) -> None:
        """Owns `folder` and `lock`, as `hosts.claim_folder` gave them. `driver` serves, if given, in place of the bus.

        Raises: NotFound, PluginConflict, PluginError for the bus; NotSupported when it can't serve other processes.
        """
        self._runtime, self._folder, self._lock, self._parent = runtime, folder, lock, parent
        self._bus_name = bus
        self._bus = driver or plugins().load_bus(bus)
        if not hasattr(self._bus, "serve"):
            raise NotSupported(f"the bus {bus} works inside one process only; vfio-user can serve others")
        self._hypervisor, self._setup = (None, None) if driver else vmm.prepare(bus)
        self._served: dict[str, _Served] = {}
        self._parting: set[_Served] = set()
        """Whose bus has ended by itself, until the device is closed."""
        self._talks: weakref.WeakSet[threading.Thread] = weakref.WeakSet()
        self._tracing = Tracing()
        self._guard = threading.RLock()
        self._stopping = threading.Lock()
        """Held while a device ends that somebody has asked to stop."""
        self._closing = False
        """No device is taken any more."""
        self._over = False
        """`run` returns."""
        self._wake_read, self._wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        hosts.write_pid(lock)
        self._listener = control.listen(folder)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def add(self, request: control.Add, *, descriptor: int | None = None) -> dict[str, Any]:
        """Make a device and serve it; at `descriptor`, a connected socket, if one is given.

        After a failure there is no device. Raises: what the model, the claim and the bus raise; StateError (closing).
        """
        with self._guard:
            if self._closing:
                raise StateError("the host process is ending")
            if request.uuid in self._served:
                raise Conflict(
                    f"{request.uuid} is in use: {self._served[request.uuid].device} in process {os.getpid()}"
                )
            device = self._parent.create(request.type, request.uuid, attributes=request.attributes)
            path = request.socket
            if path is None and descriptor is None:
                path = str(hosts.socket_path(self._runtime, request.uuid))
            try:
                options = dict(request.options)
                if request.wire_log is not None:
                    options["wire_log"] = request.wire_log
                if self._hypervisor is not None:
                    options["hypervisor"] = self._hypervisor
                server = self._bus.serve(device, path=path, descriptor=descriptor, **options)
            except BaseException:
                device.close()
                raise
            self._served[request.uuid] = _Served(device, server, self._ended)
            where = server.socket_path or ("" if descriptor is None else f"descriptor {descriptor}")
            _log.info("%s: served on %s %s", device, self._bus_name, where)
            return self.show(request.uuid)

    def device(self, uuid: str) -> Device:
        """Raises: NotFound."""
        with self._guard:
            return self._find(uuid).device

    def stop(self, uuid: str) -> bool:
        """End a device; True if it was the last one. Raises: NotFound."""
        with self._stopping:
            with self._guard:
                served = self._find(uuid)
                del self._served[uuid]
                last = not self._served
                self._closing = self._closing or last
            served.close()
        _log.info("%s: stopped", uuid)
        return last

    def show(self, uuid: str) -> dict[str, Any]:
        """Describe a device. Raises: NotFound."""
        with self._guard:
            served = self._find(uuid)
        path = served.server.socket_path
        return describe(
            served.device,
            bus=self._bus_name,
            socket=path,
            argument=served.server.device_argument if path else None,
            log=str(self._folder / "log") if (self._folder / "log").exists() else None,
            environment=dict(self._setup.environment) if self._setup else {},
        )

    def query(self, uuid: str, name: str, arguments: dict[str, Any]) -> object:
        """Call a query of the model. Raises: NotFound, what the query raises."""
        with self._guard:
            served = self._find(uuid)
        return served.device.query(name, **arguments)

    def trace(self, request: control.Trace, connection: socket.socket) -> None:
        """Send what a device does, until it or the reader is gone. Raises: NotFound, as `Tracing.follow`."""
        with self._guard:
            served = self._find(request.uuid)
        with contextlib.suppress(ConnectionError):  # the reader has hung up
            self._tracing.follow(
                served.device, request, connection, lambda: self._served.get(request.uuid) is not served
            )

    def end(self) -> None:
        """Make `run` return; harmless when it has. Any thread, also a signal handler."""
        self._closing = self._over = True
        with contextlib.suppress(BlockingIOError, BrokenPipeError):  # full, and `run` awake; or the host is closed
            os.write(self._wake_write, b"!")

    def run(self) -> None:
        """Answer the control socket until the last device has ended or `end` is called."""
        poll = select.poll()
        poll.register(self._listener, select.POLLIN)
        poll.register(self._wake_read, select.POLLIN)
        while not self._over:
            ready = {descriptor for descriptor, _ in poll.poll()}
            if self._listener.fileno() in ready and not self._over:
                self._take()

    def close(self) -> None:
        """End every device and remove what this process has in the runtime directory. May be called twice.

        Every device is closed when it returns, also one whose bus ended by itself meanwhile.
        """
        with self._guard:
            self._closing = True
            left = list(self._served.values())
            self._served.clear()
            parting = list(self._parting)
        if self._lock == -1:
            return
        with self._stopping:
            for served in left:
                try:
                    served.close()
                except Exception:  # noqa: BLE001 - a model or bus may raise anything; the others are still ended
                    _log.exception("%s: did not end cleanly", served.device)
        for served in parting:
            served.join()
        self._tracing.wait()
        for talk in self._talks - {threading.current_thread()}:
            talk.join(_PARTING_SECONDS)
        self._listener.close()
        if self._setup is not None:
            self._setup.close()
        os.close(self._wake_read)
        lock, self._lock = self._lock, -1
        hosts.release_folder(self._runtime, self._folder, lock)

    def _take(self) -> None:
        """Answer whoever knocks, in a thread of its own; never raises for want of descriptors or threads."""
        try:
            connection, _ = self._listener.accept()
            try:
                talk = threading.Thread(target=self._converse, args=(connection,), daemon=True)
                talk.start()
                self._talks.add(talk)
            except BaseException:
                connection.close()
                raise
        except (OSError, RuntimeError) as error:  # none is left: it can wait, and the devices go on
            _log.warning("control: no connection: %s", error)
            time.sleep(_ACCEPT_PAUSE)

    def _find(self, uuid: str) -> _Served:
        if uuid not in self._served:
            raise NotFound(f"{uuid} is not running in process {os.getpid()}")
        return self._served[uuid]

    def _ended(self, uuid: str) -> None:
        """A bus ended by itself: its client's descriptor closed, or it failed."""
        with self._guard:
            served = self._served.pop(uuid, None)
            if served is None:  # somebody else closes it, and waits for this thread
                return
            self._parting.add(served)
            last = not self._served
        try:
            served.close()
        except Exception:  # noqa: BLE001 - a model or bus may raise anything; the host ends all the same
            _log.exception("%s: did not end cleanly", served.device)
        with self._guard:
            self._parting.discard(served)
        if last:
            self.end()

    def _converse(self, connection: socket.socket) -> None:
        with connection:
            connection.settimeout(_REQUEST_SECONDS)
            last = False
            try:
                if not control.peer_is_trusted(connection):
                    return
                body = control.receive(connection, control.REQUEST_LIMIT)
                if body is None:
                    return
                reply, last = self._answer(body, connection)
                if reply is None:
                    return
                control.send(connection, msgspec.msgpack.encode(reply))
            except (OSError, ProtocolError) as error:
                _log.warning("control: %s", error)
            finally:
                if last:
                    self.end()

    def _answer(self, body: bytes, connection: socket.socket) -> tuple[control.Reply | None, bool]:
        """What to reply, if that has not been done; and whether the process ends."""
        try:
            request = msgspec.msgpack.decode(body, type=control.Request)
        except msgspec.DecodeError as error:
            return control.failed(ProtocolError(f"no request: {error}")), False
        last = False
        try:
            result: Any
            match request:
                case control.Add():
                    result = self.add(request)
                case control.Stop():
                    result = last = self.stop(request.uuid)
                case control.Show():
                    result = self.show(request.uuid)
                case control.Query():
                    result = self.query(request.uuid, request.name, request.arguments)
                case control.Trace():
                    self.trace(request, connection)
                    return None, False
        except Exception as error:  # noqa: BLE001 - models and plugins may raise anything; the client is told
            if not isinstance(error, UmdevError):
                _log.exception("%r failed", request)
            return control.failed(error), False
        return control.Done(result), last


def main() -> int:
    """Run the host that the one argument, a `Spec` in JSON, describes; returns the exit code."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    spec = msgspec.json.decode(sys.argv[1], type=Spec)
    for descriptor in (spec.lock, spec.ready):
        os.set_inheritable(descriptor, False)
    directory = Path(spec.runtime)
    try:
        opened = open_host(directory, directory / "hosts" / spec.name, spec.lock, spec.parent, spec.bus)
        with opened as host, ended_by_signals(host):
            described = host.add(spec.first)
            os.chdir("/")
            _tell(spec.ready, control.Done(described))
            host.run()
    except Exception as error:  # noqa: BLE001 - plugins may raise anything; the command that waits is told
        _log.error("the host process failed", exc_info=error)
        _tell(spec.ready, control.failed(error))
        return exit_code(error)
    return Exit.OK


def open_host(directory: Path, folder: Path, lock: int, parent: str, bus: str, driver: Any = None) -> Host:
    """A host in a claimed folder, which is removed if that fails.

    Raises: as `Host`; NotFound, PluginConflict, PluginError for the parent.
    """
    try:
        return Host(directory, folder, lock, plugins().load_parent(parent), bus, driver=driver)
    except BaseException:
        hosts.release_folder(directory, folder, lock)
        raise


@contextlib.contextmanager
def ended_by_signals(host: Host) -> Iterator[None]:
    """SIGTERM and SIGINT end the host's `run`, even one that begins later: enter it before anybody is told of the host.

    Main thread only.
    """

    def end(_number: int, _frame: FrameType | None) -> None:
        host.end()

    before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _tell(ready: int, reply: control.Reply) -> None:
    """Answer the command that waits, once: what fails later is in the log."""
    with contextlib.suppress(BrokenPipeError), os.fdopen(ready, "wb") as pipe:  # nobody waits any more
        pipe.write(msgspec.msgpack.encode(reply))


def argument(spec: Spec) -> str:
    """The one argument of `python -m umdev_cli.host`."""
    return json.dumps(msgspec.to_builtins(spec))


if __name__ == "__main__":
    sys.exit(main())
