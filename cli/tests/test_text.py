"""What people read: lspci's view, waiting, errors in one line."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import pytest
from umdev.errors import (
    Conflict,
    InvalidArgument,
    NoInstanceLeft,
    NotFound,
    NotSupported,
    PluginConflict,
    PluginError,
    ServiceUnavailable,
    SocketPathError,
    StateError,
    UmdevError,
)
from umdev_cli import failures, lspci, output

if TYPE_CHECKING:
    from collections.abc import Callable

HEADER = {
    "uuid": "U",
    "parent": "toys",
    "type": "toy",
    "attributes": {"colour": "red"},
    "pid": 5,
    "bus": "tap",
    "state": "running",
    "socket": "/run/toy.sock",
    "log": "/run/log",
    "pci": {"vendor": 0x1234, "device": 0x11E8, "class": 0x030000, "revision": 2},
    "regions": [],
    "interrupts": {"mode": "msix", "counts": [1, 4, 16], "counters": {"sent": 3}},
    "services": {"trap[0]": "messages"},
    "refused": {"pin": "pin is not available here:\n  tap: no"},
    "counters": {"reads": 7, "faulted": 0},
    "burn_down": [{"region": 0, "offset": 0x40, "length": 4, "reads": 2, "writes": 1, "value": 9}],
    "burn_down_lost": 6,
    "queries": {"frame": "The picture."},
}


def config(**values: tuple[int, int]) -> str:
    """Configuration space as hexadecimal text: `o40=(value, length)` stores at 0x40."""
    data = bytearray(256)
    for name, (value, length) in values.items():
        offset = int(name[1:], 16)
        data[offset : offset + length] = value.to_bytes(length, "little")
    return data.hex()


def shown(verbose: int = 1, **changes: Any) -> list[str]:
    return list(lspci.lines({**HEADER, "config": config(), **changes}, verbose))


class TestLspci:
    def test_one_line(self) -> None:
        assert shown(0) == ["U toys toy [0300]: 1234:11e8 (rev 02)"]

    def test_everything_else(self) -> None:
        text = shown(config=config(o4=(0x0406, 2), o3d=(1, 1)))
        for line in (
            "\tBus: tap, running, process 5",
            "\tSocket: /run/toy.sock",
            "\tLog: /run/log",
            "\tAttribute colour: red",
            "\tControl: I/O- Mem+ BusMaster+ ParErr- SERR- DisINTx+",
            "\tInterrupt: pin A, MSI 4, MSI-X 16; in use: msix",
            "\tService trap[0]: messages",
            "\tService pin: refused: pin is not available here; tap: no",
            "\tCounters: reads=7 sent=3",
            "\t\tregion 0 offset 0x40 length 4: 2 reads, 1 writes, last 0x9",
            "\t\t6 accesses more than the list can hold",
            "\tQuery frame: The picture.",
        ):
            assert line in text
        assert "\tCounters: reads=7 faulted=0 sent=3" in shown(2)

    def test_regions(self) -> None:
        def region(index: int, kind: str, size: int, *, areas: int = 0) -> dict[str, Any]:
            covered = [{"offset": 0, "length": areas}] if areas else []
            return {"index": index, "kind": kind, "size": size, "prefetchable": kind == "memory64", "areas": covered}

        text = shown(
            config=config(o10=(0xC001, 4), o14=(0xFEB00000, 4), o18=(0x38_0000_000C, 8), o30=(0xFEC00001, 4)),
            regions=[
                region(0, "io", 8),
                region(1, "memory32", 1 << 20, areas=8192),
                region(2, "memory64", 3 << 30),
                region(6, "rom", 65536),
            ],
        )
        for line in (
            "\tRegion 0: I/O ports at c000 [size=8]",
            "\tRegion 1: Memory at feb00000 (32-bit, non-prefetchable) [size=1M, 8K passed through]",
            "\tRegion 2: Memory at 0000003800000000 (64-bit, prefetchable) [size=3G]",
            "\tExpansion ROM at fec00000 [size=64K]",
        ):
            assert line in text

    def test_capabilities(self) -> None:
        chain = config(
            o6=(0x10, 2), o34=(0x40, 1), o40=(0x01850005, 4), o50=(0x0003_6001, 4), o54=(3, 2),
            o60=(0x800F_7011, 4), o70=(0x0000_0009, 4), o41=(0x50, 1),
        )  # fmt: skip
        assert [line for line in shown(config=chain) if "Capabilities" in line] == [
            "\tCapabilities: [40] MSI: Enable+ Count=1/4 Maskable+ 64bit+",
            "\tCapabilities: [50] Power Management: D3",
            "\tCapabilities: [60] MSI-X: Enable+ Count=16 Masked-",
            "\tCapabilities: [70] Vendor Specific",
        ]

    def test_a_circle_of_capabilities_ends(self) -> None:
        text = shown(config=config(o6=(0x10, 2), o34=(0x40, 1), o40=(0x4009, 2)))
        assert len([line for line in text if "Capabilities" in line]) == 48


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (InvalidArgument("x"), 2),
        (NotFound("x"), 3),
        (NotSupported("x"), 4),
        (ServiceUnavailable("trap", []), 4),
        (Conflict("x"), 5),
        (PluginConflict("x"), 5),
        (NoInstanceLeft("x"), 5),
        (SocketPathError("x"), 5),
        (StateError("x"), 1),
        (UmdevError("x"), 1),
        (PluginError("p", "h", ValueError("x")), 1),
        (ValueError("x"), 1),
        (failures.RemoteError("NotFound", "x", 3), 3),
    ],
)
def test_exit_codes(error: Exception, code: int) -> None:
    assert failures.exit_code(error) == code


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (NotFound("no such\n  thing"), "NotFound: no such; thing"),
        (ValueError(), "ValueError: no reason given"),
        (failures.RemoteError("NotFound", "gone", 3), "NotFound: gone"),
        (ServiceUnavailable("pin", [("tap", "no")]), "ServiceUnavailable: pin is not available here; tap: no"),
        (
            ExceptionGroup("two failed", [NotFound("a"), ValueError("b")]),
            "ExceptionGroup: two failed; NotFound: a; ValueError: b",
        ),
    ],
)
def test_one_line(error: Exception, text: str) -> None:
    assert failures.line(error) == text


class TestWaiting:
    def wait_for(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 60
        while not condition():
            assert time.monotonic() < deadline
            time.sleep(0.005)

    def test_says_what_takes_long(self, monkeypatch: pytest.MonkeyPatch) -> None:
        said: list[str] = []
        monkeypatch.setattr(output, "PATIENCE", 0.01)
        monkeypatch.setattr(output, "note", said.append)
        with output.waiting("cooking"):
            self.wait_for(lambda: len(said) > 1)
        assert said[0] == "cooking ... 0 s"

    def test_is_silent_otherwise_and_after_a_failure(self, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(ValueError, match="burnt"), output.waiting("cooking"):
            raise ValueError("burnt")
        assert capsys.readouterr() == ("", "")
