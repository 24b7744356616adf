"""The host process in this process: devices that do not end as they should, and answers that can't be given."""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from typing import TYPE_CHECKING, Any

import pytest
from umdev.device import Device, DeviceType, Parent, PciId, query
from umdev.errors import Disconnected
from umdev_cli import control, hosts
from umdev_cli.failures import RemoteError
from umdev_cli.host import Host
from umdev_cli.served import StillBusy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

A, B = (str(uuid.UUID(int=number)) for number in (1, 2))
PATIENCE = 60.0
released = threading.Event()
"""What stuck models wait for."""


class Toy(Device):
    pci = PciId(vendor=0x1234, device=0x0001, class_code=0x00FF00)

    def on_open(self) -> None:
        if self.context.attributes.get("at") == "open":
            released.wait()

    def on_close(self) -> None:
        match self.context.attributes.get("at"):
            case "close":
                released.wait()
            case "raise":
                raise RuntimeError("the toy is stuck to the table")

    @query
    def number(self) -> int:
        """More than 64 bits."""
        return 1 << 64

    @query
    def thing(self) -> object:
        """No plain data."""
        return object()

    @query
    def leave(self) -> object:
        """Would end a command."""
        sys.exit("the toy leaves")


class Server:
    socket_path = None

    def __init__(self) -> None:
        self.over = threading.Event()
        self.error: BaseException | None = None

    def run(self) -> None:
        self.over.wait()
        if self.error is not None:
            raise self.error

    def stop(self) -> None:
        self.over.set()

    def close(self) -> None: ...


class Driver:
    def __init__(self) -> None:
        self.servers: list[Server] = []

    def serve(self, _device: Device, **_options: Any) -> Server:
        self.servers.append(Server())
        return self.servers[-1]


class Running:
    """A host that runs in a thread."""

    def __init__(self, folder: Path) -> None:
        claimed = hosts.claim_folder(folder, "toys")
        assert claimed is not None
        self.folder = claimed[0]
        self.driver = Driver()
        toy = DeviceType("toy", "A toy", Toy, attributes={"at": "where it is stuck"})
        self.host = Host(folder, *claimed, Parent("toys", [toy], shared_process=True), "own", driver=self.driver)
        self.thread = threading.Thread(target=self.host.run)
        self.thread.start()

    def add(self, identity: str, at: str = "") -> None:
        self.host._end_seconds = 0.1 if at == "close" else PATIENCE  # those are stuck however long one waits
        self(control.Add(identity, "toy", {"at": at}, None))

    def __call__(self, request: control.Request) -> Any:
        return control.call(self.folder, request)

    def ended(self) -> bool:
        self.thread.join(PATIENCE)
        return not self.thread.is_alive()


@pytest.fixture
def running(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Running]:
    monkeypatch.setenv("UMDEV_RUNTIME_DIR", str(tmp_path))
    released.clear()
    running = Running(tmp_path)
    yield running
    released.set()
    running.host.end()
    assert running.ended()
    with contextlib.suppress(StillBusy):
        running.host.close()
    until(lambda: not running.host._served)


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.001)


def test_a_model_that_raises_at_its_end_ends_the_process(running: Running) -> None:
    running.add(A, "raise")
    with pytest.raises(RemoteError, match="stuck to the table"):
        running(control.Stop(A))
    assert running.ended()


@pytest.mark.parametrize("error", [None, RuntimeError("bus"), SystemExit("bus")])
def test_a_bus_that_ends_by_itself_ends_the_process(running: Running, error: BaseException | None) -> None:
    running.add(A, "raise")
    (server,) = running.driver.servers
    server.error = error
    server.over.set()
    assert running.ended()
    assert not running.host._served


def test_a_stuck_device_is_told_and_goes_when_it_can(running: Running) -> None:
    running.add(A, "close")
    running.add(B)
    for _ in range(2):
        with pytest.raises(RemoteError, match="is stuck in a handler") as raised:
            running(control.Stop(A))
        assert raised.value.name == "StillBusy"
    released.set()
    until(lambda: A not in running.host._served)
    assert running(control.Show(B))["uuid"] == B
    assert running(control.Stop(B)) is True
    assert running.ended()


def test_a_stuck_device_ends_with_the_last_one(running: Running, caplog: pytest.LogCaptureFixture) -> None:
    running.add(A, "close")
    running.add(B)
    with pytest.raises(RemoteError, match="is stuck in a handler"):
        running(control.Stop(A))
    assert "released.wait()" in caplog.text, "the log says where it is stuck"
    assert running(control.Stop(B)) is True
    assert running.ended()
    with pytest.raises(StillBusy, match=A):
        running.host.close()
    assert not running.folder.exists()


def test_the_last_device_may_be_stuck(running: Running) -> None:
    running.add(A, "close")
    assert running(control.Stop(A)) is True
    assert running.ended()


def test_a_model_that_takes_long_to_open_holds_nobody_up(running: Running) -> None:
    running.add(A)
    opening = threading.Thread(target=running.add, args=(B, "open"))
    opening.start()
    until(lambda: B in running.host._adding)
    assert running(control.Show(A))["uuid"] == A
    with pytest.raises(RemoteError, match="in use"):
        running.add(B)
    assert running(control.Stop(A)) is False, "another is about to come"
    released.set()
    opening.join()
    assert running(control.Stop(B)) is True


@pytest.mark.parametrize(
    ("name", "said"), [("number", "the answer can't be sent"), ("thing", "can't be sent"), ("leave", "the toy leaves")]
)
def test_an_answer_that_can_not_be_given(running: Running, name: str, said: str) -> None:
    running.add(A)
    with pytest.raises(RemoteError, match=said):
        running(control.Query(A, name, {}))
    assert running(control.Show(A))["uuid"] == A


def test_a_process_with_no_place_for_more_clients(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener, contextlib.ExitStack() as clients:
        listener.bind(str(tmp_path / "control"))
        listener.listen(0)
        clients.enter_context(control.connect(tmp_path, PATIENCE))  # all that listen(0) takes
        with pytest.raises(Disconnected, match="takes no more clients"):
            control.connect(tmp_path, 0.02)

        def accept_one() -> None:
            listener.accept()[0].close()

        accepting = threading.Thread(target=accept_one)
        accepting.start()
        control.connect(tmp_path, PATIENCE).close()
        accepting.join()


@pytest.mark.parametrize(("signals", "closed"), [(1, False), (1, True), (2, False)])
def test_signals_end_a_process_whose_device_is_stuck(tmp_path: Path, signals: int, closed: bool) -> None:
    program = f"""
import sys
import threading
from pathlib import Path
from umdev.device import Device, DeviceType, Parent, PciId
from umdev_cli import control, host, hosts

class Toy(Device):
    pci = PciId(vendor=0x1234, device=0x0001, class_code=0x00FF00)

    def on_close(self):
        print("closing", flush=True)
        threading.Event().wait()

class Server:
    socket_path = None
    over = threading.Event()
    def run(self): self.over.wait()
    def stop(self): self.over.set()
    def close(self): ...

class Driver:
    def serve(self, device, **options): return Server()

folder = Path({str(tmp_path)!r})
parent = Parent("toys", [DeviceType("toy", "A toy", Toy)])
with host.whole_process(host.Host(folder, *hosts.claim_folder(folder, "toys"), parent, "own", driver=Driver())) as made:
    made._end_seconds = {0.1 if signals == 1 else 1e6}
    made.add(control.Add("{A}", "toy", {{}}, None))
    print("ready", flush=True)
    if {closed}:
        sys.stdout = None  # as in a process that is started without one
        threading.Thread(target=threading.Event().wait).start()  # an interpreter that ends waits for it
    made.run()
"""
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGTERM)
        if signals == 2:
            assert process.stdout.readline() == "closing\n"
            process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == (1 if signals == 1 else -signal.SIGTERM)
    finally:
        process.kill()
        process.communicate()
