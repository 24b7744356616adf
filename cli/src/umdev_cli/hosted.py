"""Devices of a command that serves them by itself, as `umdev run` does: `umdev list`, `show` and `trace` know them."""

from __future__ import annotations

import threading
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from umdev import runtime
from umdev.errors import Conflict

from . import control, hosts, parents
from .host import Host, open_host
from .meant import by_word, with_attributes
from .options import parse_attributes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from umdev.device import Device, Parent

    from .definitions import Named

__all__ = ["checked", "hosted"]


@dataclass
class _Server:
    """What a host takes for a bus's server: its device is served until the command's own block has ended."""

    ended: threading.Event
    end: Callable[[], None]
    socket_path: None = None

    def run(self) -> None:
        self.ended.wait()

    def stop(self) -> None:
        if not self.ended.is_set():
            self.end()

    def close(self) -> None:
        pass


@dataclass
class _Driver:
    end: Callable[[], None]
    ended: threading.Event = field(default_factory=threading.Event)

    def serve(self, _device: Device, **_options: Any) -> _Server:
        return _Server(self.ended, self.end)


@contextmanager
def hosted(words: Sequence[str], bus: str, end: Callable[[], None]) -> Iterator[list[Device]]:
    """Devices by type (TYPE or PARENT/TYPE) or by the UUID of a defined one; closed when the block has ended.

    Attributes follow a comma, as in `mtty-1,port0=unix:/tmp/port`; a comma in a value is written twice, as for QEMU.

    Meanwhile other commands reach them, which show `bus` as what serves them. `end` is called when somebody stops one,
    by any thread: the block shall end then, and the one who asked waits for it.

    Raises: NotFound, Conflict, InvalidArgument; what models raise.
    """
    driver = _Driver(end)
    with ExitStack() as stack:
        try:
            yield _made(words, bus, driver, stack)
        finally:
            driver.ended.set()


def _made(words: Sequence[str], bus: str, driver: _Driver, stack: ExitStack) -> list[Device]:
    directory = runtime.runtime_directory()
    hosts.tidy(directory)
    running: dict[str, Host] = {}
    devices = []
    for owner, named in checked(words):
        name = named.parent if owner.shared_process else named.uuid
        if name not in running:
            claimed = hosts.claim_folder(directory, name)
            if claimed is None:
                raise Conflict(f"{name} has a process already: stop what runs there")
            host = open_host(directory, *claimed, named.parent, bus, driver)
            running[name] = stack.enter_context(_answering(host))
        attributes = named.definition.attributes()
        running[name].add(control.Add(named.uuid, named.definition.mdev_type, attributes, None))
        devices.append(running[name].device(named.uuid))
    return devices


def checked(words: Sequence[str]) -> list[tuple[Parent, Named]]:
    """Devices by words, as `hosted` takes them, and their parents; none is made, so a slip of the pen makes none.

    Raises: NotFound, Conflict, InvalidArgument, PluginError.
    """
    return [(parents.check(named.parent, named.definition), named) for named in map(_named, words)]


def _named(word: str) -> Named:
    device, *attributes = (part.replace("\0", ",") for part in word.replace(",,", "\0").split(","))
    return with_attributes(by_word(device, None, None), parse_attributes(attributes))


@contextmanager
def _answering(host: Host) -> Iterator[Host]:
    thread = threading.Thread(target=host.run, name="control", daemon=True)
    thread.start()
    try:
        yield host
    finally:
        host.end()
        thread.join()
        host.close()
