"""The test kit's pytest plugin: thin fixtures; each imports what it needs when it is used."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from umdev_testkit.fixtures import LinuxGuests


def pytest_configure(config: pytest.Config) -> None:
    """Make the markers known to projects that check them strictly."""
    config.addinivalue_line("markers", "guest: needs a real guest under QEMU (fetched by the test kit)")


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
