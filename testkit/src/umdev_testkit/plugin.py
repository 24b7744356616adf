"""The test kit's pytest plugin: thin fixtures; each imports what it needs when it is used."""

from __future__ import annotations

from typing import TYPE_CHECKING, Unpack

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from umdev.device import Device
    from umdev.driver import Function

    from umdev_testkit.fixtures import LinuxGuests, RunOptions
    from umdev_testkit.host_root import HostRootGuest
    from umdev_testkit.kvm_guest import KvmGuest
    from umdev_testkit.xen_guest import XenGuest


_ELSEWHERE = {"kvm": "kvm_guest", "xen": "xen_guest"}
"""The fixture of a guest that has what this machine may lack."""


def pytest_configure(config: pytest.Config) -> None:
    """Make the markers known to projects that check them strictly."""
    config.addinivalue_line("markers", "guest: needs a real guest under QEMU (fetched by the test kit)")
    config.addinivalue_line("markers", "kvm: needs /dev/kvm")
    config.addinivalue_line("markers", "xen: needs the real Xen test bed")


@pytest.fixture
def linux_guest(tmp_path: Path) -> Iterator[LinuxGuests]:
    """Real Linux guests: `linux_guest("script", ...)` runs one to its end, `linux_guest.start(...)` gives a live one.

    Keyword arguments are those of `umdev_testkit.guest.GuestConfig`. Logs are kept in `tmp_path/guest0`, `guest1`, ...
    Guests that still run at the test's end are killed.
    """
    from umdev_testkit.fixtures import LinuxGuests

    guests = LinuxGuests(tmp_path)
    try:
        yield guests
    finally:
        guests.close()


@pytest.fixture(scope="module")
def kvm_guest(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KvmGuest]:
    """A guest with /dev/kvm, whatever this machine has: `kvm_guest.pytest("tests/...")` runs tests there.

    One guest serves all tests of a module; see `umdev_testkit.kvm_guest.KvmGuest`.
    """
    from umdev_testkit.kvm_guest import KvmGuest

    with KvmGuest(tmp_path_factory.mktemp("kvm-guest"), timeout=3600) as guest:
        yield guest


@pytest.fixture(scope="module")
def xen_guest(tmp_path_factory: pytest.TempPathFactory) -> Iterator[XenGuest]:
    """A real Xen and its dom0, whatever this machine has: `xen_guest.pytest("tests/...")` runs tests in dom0.

    One bed serves all tests of a module; see `umdev_testkit.xen_guest.XenGuest`.
    """
    from umdev_testkit.xen_guest import XenGuest

    with XenGuest(tmp_path_factory.mktemp("xen-guest"), timeout=6000) as guest:
        yield guest


@pytest.fixture
def passes_in(record_property: Callable[[str, object], None]) -> Callable[..., None]:
    """`passes_in(guest, *arguments, ...)`: pytest in a guest runs tests, skips none and ends well, on the third try if
    need be; see `umdev_testkit.host_root.HostRootGuest.pytest`. The JUnit report names each further run as `again`.
    """
    from umdev_testkit.fixtures import pass_in

    def run(guest: HostRootGuest, *arguments: str, **options: Unpack[RunOptions]) -> None:
        for name in pass_in(guest, arguments, options):
            record_property("again", name)

    return run


@pytest.fixture(params=["address", "thread"])
def run_sanitized(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[..., None]:
    """`run_sanitized(sources, includes=folders)`: C and its tests as one program ends with status 0, once under
    AddressSanitizer and UBSan and once under ThreadSanitizer. Skips, saying why, where the compiler can't, or where the
    program ends with status 77 and the reason on stderr.
    """
    from umdev_testkit.errors import SanitizerMissing
    from umdev_testkit.sanitizers import SKIPPED, run_sanitized

    def run(sources: Sequence[Path], *, includes: Sequence[Path] = ()) -> None:
        try:
            done = run_sanitized(request.param, sources, tmp_path, includes=includes)
        except SanitizerMissing as error:
            pytest.skip(str(error))
        if done.returncode == SKIPPED:
            pytest.skip(done.stderr.strip())
        assert done.returncode == 0, done.stdout + done.stderr

    return run


@pytest.fixture
def loopback_function() -> Iterator[Callable[[Device], Function]]:
    """`loopback_function(device)`: the driver's view of a device with no VM. Both are closed at the test's end."""
    yield from _functions("loopback")


@pytest.fixture
def vfio_user_function() -> Iterator[Callable[[Device], Function]]:
    """`vfio_user_function(device)`: the same over a socket, with a server and a client in this process."""
    yield from _functions("vfio-user")


@pytest.fixture
def kvm_function() -> Iterator[Callable[[Device], Function]]:
    """`kvm_function(device)`: the same in a machine of its own. Skips, saying why, where no machine can be made."""
    yield from _functions("kvm")


@pytest.fixture(
    params=[
        "loopback",
        "vfio-user",
        "vfio-user-messages",
        *(pytest.param(name, marks=getattr(pytest.mark, name)) for name in ("kvm", "xen")),
    ]
)
def any_function(request: pytest.FixtureRequest) -> Iterator[Callable[[Device], Function]]:
    """`any_function(device)`: the test runs once on every bus of `umdev_testkit.functions.ATTACHMENTS`."""
    yield from _functions(request.param)


def _functions(attachment: str) -> Iterator[Callable[[Device], Function]]:
    from contextlib import ExitStack

    from umdev.errors import NotFound, NotSupported

    from umdev_testkit.functions import attached

    with ExitStack() as stack:

        def attach(device: Device) -> Function:
            try:
                return stack.enter_context(attached(device, attachment))
            except NotFound as error:
                pytest.skip(f"{error}: install umdev-{attachment.removesuffix('-messages')}")
            except NotSupported as error:
                if attachment not in _ELSEWHERE:
                    raise
                elsewhere = _ELSEWHERE[attachment]
                pytest.skip(f"{error} (the fixture {elsewhere} has it: {elsewhere}.pytest(...) runs these tests there)")

        yield attach
