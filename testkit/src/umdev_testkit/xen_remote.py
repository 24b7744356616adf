"""Bare domains that another process makes: for tests whose own process gives up its rights to all but one domain.

`RemoteDomains` is the tests' side; the process is `python -m umdev_testkit.xen_remote`, which answers one JSON line for
each on its standard input. Runs inside the Xen test bed only.
"""

from __future__ import annotations

import atexit
import functools
import json
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any

from umdev_testkit import errors

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

__all__ = ["RemoteDomain", "RemoteDomains", "shared_domains"]


class RemoteDomains:
    """A process that makes domains. A context manager; its end destroys them all. Any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def make(self, **options: object) -> RemoteDomain:
        """A domain with the options of `umdev_testkit.xen_domain.XenDomain`."""
        number = self.ask(None, "make", options)
        return RemoteDomain(self, number)

    def domains(self) -> list[int]:
        """Numbers of all domains, zombies included."""
        found: list[int] = self.ask(None, "domains")
        return found

    def ask(self, number: int | None, name: str, *arguments: object) -> Any:
        """Call a method of a domain there. Raises: what it raises, if the test kit has it, else GuestFailed."""
        with self._lock:
            assert self._process.stdin is not None, "it is a pipe"
            assert self._process.stdout is not None, "it is a pipe"
            self._process.stdin.write(json.dumps([number, name, [_packed(each) for each in arguments]]) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        if not line:
            raise errors.GuestFailed(f"the process that makes domains has ended: {self._process.poll()}")
        kind, value = json.loads(line)
        if kind:
            raise getattr(errors, kind, errors.GuestFailed)(f"{kind}: {value}")
        return _unpacked(value)

    def close(self) -> None:
        """May be called twice."""
        for end in (self._process.stdin, self._process.stdout):
            if end is not None:
                end.close()
        self._process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


class RemoteDomain:
    """The methods of `umdev_testkit.xen_domain.XenDomain` that tests use; `domid` follows `recreate`."""

    def __init__(self, domains: RemoteDomains, number: int) -> None:
        self._domains = domains
        self._number = number
        self.domid: int = self._ask("domid")
        """The domain's number."""

    def load(self, code: bytes, address: int = 0x1_0000) -> None:
        """Put code there, and every processor at it."""
        self._ask("load", code, address)

    def run(self, timeout: float) -> int:
        """Run until it says `exit`. Raises: GuestTimedOut, GuestDied."""
        return int(self._ask("run", timeout))

    def unpause(self) -> None:
        """Let the processors run."""
        self._ask("unpause")

    def pause(self) -> None:
        """Stop them."""
        self._ask("pause")

    def read(self, address: int, length: int) -> bytes:
        """Its memory. Raises: GuestFailed where there is none."""
        found: bytes = self._ask("read", address, length)
        return found

    def write(self, address: int, data: bytes) -> None:
        """Its memory. Raises: GuestFailed where there is none."""
        self._ask("write", address, data)

    def shutdown(self) -> None:
        """Power it off."""
        self._ask("shutdown")

    def destroy(self) -> None:
        """Destroy it."""
        self._ask("destroy")

    def recreate(self) -> int:
        """Destroy it and build it anew, under another number."""
        self.domid = self._ask("recreate")
        return self.domid

    def close(self) -> None:
        """Destroy it, if it isn't yet."""
        self._ask("close")

    def _ask(self, name: str, *arguments: object) -> Any:
        return self._domains.ask(self._number, name, *arguments)


@functools.cache
def shared_domains() -> RemoteDomains:
    """The one process that makes domains for all of this one, until this one ends: to start it takes seconds there."""
    domains = RemoteDomains()
    atexit.register(domains.close)
    return domains


def _packed(value: object) -> object:
    return {"bytes": bytes(value).hex()} if isinstance(value, bytes | bytearray) else value


def _unpacked(value: Any) -> Any:
    return bytes.fromhex(value["bytes"]) if isinstance(value, dict) and "bytes" in value else value


def _serve() -> None:
    from umdev_testkit.xen_domain import XenDomain, domains

    made: list[XenDomain] = []

    def answer(number: int | None, name: str, arguments: list[Any]) -> Any:
        if name == "domains":
            return domains()
        if name == "make":
            made.append(XenDomain(**arguments[0]))
            return len(made) - 1
        assert number is not None, "it names a domain"
        found = getattr(made[number], name)
        return found(*map(_unpacked, arguments)) if callable(found) else found

    try:
        for line in sys.stdin:
            try:
                reply: list[Any] = ["", _packed(answer(*json.loads(line)))]
            except Exception as error:  # noqa: BLE001 - the other side raises it
                reply = [type(error).__name__, str(error)]
            sys.stdout.write(json.dumps(reply) + "\n")
            sys.stdout.flush()
    finally:
        for domain in made:
            domain.close()


if __name__ == "__main__":
    _serve()
