"""The process that hosts devices: one device, or all devices of a parent whose devices share state.

It serves each device's bus in a thread, answers its control socket, and ends with its last device, on SIGTERM or
SIGINT; also when a handler of a device never returns. Whatever way it ends, `hosts.tidy` removes what it may leave.
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

from . import control, hosts, logs, vmm
from .describe import describe
from .failures import Exit, exit_code
from .served import Served, StillBusy
from .tracing import Tracing

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator
    from types import FrameType

    from umdev.device import Device, Parent

__all__ = ["Host", "Spec", "main", "open_host", "whole_process"]

_log = logging.getLogger("umdev.host")
_REQUEST_SECONDS = 10.0
_END_SECONDS = 10.0
"""A device that takes longer to end is stuck in a handler."""
_PARTING_SECONDS = 1.0
"""What others get to finish when the process ends; who has asked for that gets the answer."""
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


class Host:
    """Devices of one parent on one bus, with the control socket for them. Use as a context manager."""

    def __init__(self, runtime: Path, folder: Path, lock: int, parent: Parent, bus: str, *, driver: Any = None) -> None:
        """Owns `folder` and `lock`, as `hosts.claim_folder` gave them. `driver` serves, if given, in place of the bus,
        and devices may then take any time to end.

        Raises: NotFound, PluginConflict, PluginError for the bus; NotSupported when it can't serve other processes.
        """
        self._runtime, self._folder, self._lock, self._parent = runtime, folder, lock, parent
        self._bus_name = bus
        self._bus = driver or plugins().load_bus(bus)
        if not hasattr(self._bus, "serve"):
            raise NotSupported(f"the bus {bus} works inside one process only; vfio-user can serve others")
        self._hypervisor, self._setup = (None, None) if driver else vmm.prepare(bus)
        self._end_seconds = None if driver else _END_SECONDS
        self._served: dict[str, Served] = {}
        """Until they are closed."""
        self._adding: set[str] = set()
        """Whose models are being made, which may take long."""
        self._talks: weakref.WeakSet[threading.Thread] = weakref.WeakSet()
        self._stopping: weakref.WeakSet[threading.Thread] = weakref.WeakSet()
        """Talks with who has asked for a device's end, and so maybe for that of the process."""
        self._tracing = Tracing()
        self._guard = threading.Condition()
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
            if request.uuid in self._adding or request.uuid in self._served:
                raise Conflict(f"{request.uuid} is in use in process {os.getpid()}")
            self._adding.add(request.uuid)
        try:
            served = self._serve(request, descriptor)
        finally:
            with self._guard:
                self._adding.remove(request.uuid)
                self._guard.notify_all()
            if self._is_last():  # the others have ended meanwhile, and this one too or never was
                self.end()
        return self._describe(served)

    def _serve(self, request: control.Add, descriptor: int | None) -> Served:
        path = request.socket
        if path is None and descriptor is None:
            path = str(hosts.socket_path(self._runtime, request.uuid))
        with contextlib.ExitStack() as undo:
            device = self._parent.create(request.type, request.uuid, attributes=request.attributes)
            undo.callback(device.close)
            options = dict(request.options)
            if request.wire_log is not None:
                options["wire_log"] = request.wire_log
            if self._hypervisor is not None:
                options["hypervisor"] = self._hypervisor
            server = self._bus.serve(device, path=path, descriptor=descriptor, **options)
            undo.callback(server.close)
            where = server.socket_path or ("" if descriptor is None else f"descriptor {descriptor}")
            _log.info("%s: served on %s %s", device, self._bus_name, where)
            with self._guard:
                served = self._served[request.uuid] = Served(device, server, self._ended, self._end_seconds)
            undo.pop_all()
        return served

    def device(self, uuid: str) -> Device:
        """Raises: NotFound."""
        return self._find(uuid).device

    def stop(self, uuid: str) -> bool:
        """End a device; True if it was the last one: then the process ends, be the device stuck in a handler or not.

        Raises: NotFound; StillBusy, and then the device is there until the handler returns or the last other one ends;
        what the bus and the model raise at the end.
        """
        self._stopping.add(threading.current_thread())
        served = self._find(uuid)
        served.ending = True
        last = self._is_last()
        served.stop()
        if served.wait():
            if served.error is not None:
                raise served.error
            _log.info("%s: stopped", uuid)
        elif last or self._is_last():
            self.end()
        else:
            raise StillBusy(
                f"{served.device} is stuck in a handler, and process {os.getpid()} has other devices: it ends when the "
                f"handler returns, or with the last of them; where it is stuck is in {self._folder / 'log'}"
            )
        return self._closing

    def show(self, uuid: str) -> dict[str, Any]:
        """Describe a device. Raises: NotFound."""
        served = self._find(uuid)
        if served.ending:  # its lock may be that of a handler which does not return
            raise NotFound(f"{uuid} is ending")
        return self._describe(served)

    def _describe(self, served: Served) -> dict[str, Any]:
        path = served.server.socket_path
        if path is not None:
            path = str(Path(path).absolute())  # who reads it may be in another folder
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
        return self._find(uuid).device.query(name, **arguments)

    def trace(self, request: control.Trace, connection: socket.socket) -> None:
        """Send what a device does, until it or the reader is gone. Raises: NotFound, as `Tracing.follow`."""
        served = self._find(request.uuid)
        with contextlib.suppress(ConnectionError):  # the reader has hung up
            self._tracing.follow(served.device, request, connection, lambda: served.ending)

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

        Raises: StillBusy, when all else is done, for a device that is stuck in a handler: end the process then.
        """
        with self._guard:
            self._closing = True
            if self._lock == -1:
                return
            made = self._guard.wait_for(lambda: not self._adding, self._end_seconds)
            left = list(self._served.values())
        for served in left:
            served.stop()
        stuck = [str(served.device) for served in left if not served.wait()]
        stuck += [] if made else sorted(self._adding)
        self._tracing.wait()
        parting = time.monotonic() + _PARTING_SECONDS
        for talk in self._talks - {threading.current_thread()}:
            talk.join(_REQUEST_SECONDS if talk in self._stopping else max(0.0, parting - time.monotonic()))
        self._listener.close()
        if self._setup is not None:
            self._setup.close()
        os.close(self._wake_read)
        lock, self._lock = self._lock, -1
        hosts.release_folder(self._runtime, self._folder, lock)
        if stuck:
            raise StillBusy(f"{', '.join(stuck)}: a handler has not returned for {self._end_seconds} s")

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

    def _find(self, uuid: str) -> Served:
        with self._guard:
            if uuid not in self._served:
                raise NotFound(f"{uuid} is not running in process {os.getpid()}")
            return self._served[uuid]

    def _is_last(self) -> bool:
        """Whether every device that is left is about to go: then no other is taken, and the process ends."""
        with self._guard:
            if not self._adding and all(served.ending for served in self._served.values()):
                self._closing = True
            return self._closing

    def _ended(self, served: Served) -> None:
        """It is closed: somebody has stopped it, or its bus has ended by itself or failed."""
        with self._guard:
            self._served.pop(str(served.device.context.uuid), None)
        if self._is_last():
            self.end()

    def _converse(self, connection: socket.socket) -> None:
        with connection:
            connection.settimeout(_REQUEST_SECONDS)
            try:
                if not control.peer_is_trusted(connection):
                    return
                body = control.receive(connection, control.REQUEST_LIMIT)
                if body is None:
                    return
                reply = self._answer(body, connection)
                if reply is not None:
                    control.send(connection, reply)
            except (OSError, ProtocolError) as error:
                _log.warning("control: %s", error)

    def _answer(self, body: bytes, connection: socket.socket) -> bytes | None:
        """What to reply, if that has not been done."""
        try:
            reply = self._done(body, connection)
            return None if reply is None else msgspec.msgpack.encode(reply)
        except Exception as error:  # noqa: BLE001 - what a query has returned may be anything
            _log.warning("control: an answer can't be sent", exc_info=error)
            return msgspec.msgpack.encode(control.failed(UmdevError(f"the answer can't be sent: {error}")))

    def _done(self, body: bytes, connection: socket.socket) -> control.Reply | None:
        try:
            request = msgspec.msgpack.decode(body, type=control.Request)
        except msgspec.DecodeError as error:
            return control.failed(ProtocolError(f"no request: {error}"))
        try:
            result: Any
            match request:
                case control.Add():
                    result = self.add(request)
                case control.Stop():
                    result = self.stop(request.uuid)
                case control.Show():
                    result = self.show(request.uuid)
                case control.Query():
                    result = self.query(request.uuid, request.name, request.arguments)
                case control.Trace():
                    self.trace(request, connection)
                    return None
        except BaseException as error:  # noqa: BLE001 - models and plugins may raise anything; the client is told
            if not isinstance(error, UmdevError):
                _log.exception("%r failed", request)
            return control.failed(error)
        return control.Done(result)


def main() -> int:
    """Run the host that the one argument, a `Spec` in JSON, describes; returns the exit code."""
    logs.configure(times=True)
    spec = msgspec.json.decode(sys.argv[1], type=Spec)
    for descriptor in (spec.lock, spec.ready):
        os.set_inheritable(descriptor, False)
    directory = Path(spec.runtime)
    try:
        opened = open_host(directory, directory / "hosts" / spec.name, spec.lock, spec.parent, spec.bus)
        with whole_process(opened) as host:
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
def whole_process(host: Host) -> Iterator[Host]:
    """A host that is closed at the end of the block, where the process ends too. Main thread only.

    SIGTERM and SIGINT end its `run`, even one that begins later: enter this before anybody is told of the host. A
    second signal ends the process at once, and so does a device that is stuck in a handler when the host is closed.
    """
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def end(_number: int, _frame: FrameType | None) -> None:
        for number in before:
            signal.signal(number, signal.SIG_DFL)
        host.end()

    for number in before:
        signal.signal(number, end)
    try:
        with host:
            yield host
    except StillBusy as error:
        _log.error("the process ends without it: %s", error, exc_info=error.__context__)
        logging.shutdown()
        if sys.stdout is not None:  # the process was started without one
            sys.stdout.flush()
        os._exit(Exit.FAILED)
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
