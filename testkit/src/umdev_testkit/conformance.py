"""What holds for every device model on every bus.

    def test_it_conforms(any_function):
        device = MyDevice()
        conformance.check(any_function(device), device)

A model passes or a check says by name what does not hold. Nothing here knows what the device is for: that is for its
own tests. The checks write to registers, so give them a device that may do whatever these writes ask for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from umdev.device import ResetKind
from umdev.errors import SaveError

if TYPE_CHECKING:
    from umdev.device import Device
    from umdev.driver import BarView, Function

__all__ = ["check", "check_bars", "check_capabilities", "check_decoding", "check_reset", "check_save"]

SCRIBBLED = 4096
"""Bytes at the start of each BAR that `check_reset` writes to."""
SMALLEST = {"io": 4, "memory32": 16, "memory64": 16, "rom": 2048}
"""Bytes of a BAR, at least (PCI Local Bus 3.0, 6.2.5.1 and 6.2.5.2)."""
BYTEWISE = 8
"""Bytes of the largest BAR that is accessed byte by byte, as old I/O devices are."""
_CONVENTIONAL = 256


def check(function: Function, device: Device) -> None:
    """All checks of this module. The function is as after a reset of the bus when it returns: nothing is enabled.

    Raises: AssertionError, which says what does not hold.
    """
    check_capabilities(function)
    check_bars(function)
    check_decoding(function)
    check_save(device)
    check_reset(function, device)


def check_capabilities(function: Function) -> None:
    """There is a function, and its chain of capabilities ends, inside configuration space, with none twice.

    Raises: AssertionError, ProtocolError for a chain that does not end.
    """
    assert function.config.vendor_id != 0xFFFF, "no function answers: its vendor reads as all ones"
    offsets = [offset for _, offset in function.config.capabilities()]
    assert all(offset % 4 == 0 for offset in offsets), f"capabilities at {offsets} are not aligned to 4 bytes"


def check_bars(function: Function) -> None:
    """BARs can be sized as firmware does it, their sizes are what the bus says, and sizing leaves no trace.

    Raises: AssertionError.
    """
    before = function.config.read(0, _CONVENTIONAL)
    probed = function.probe_bars()
    assert function.config.read(0, _CONVENTIONAL) == before, "sizing has changed configuration space"
    views = {**function.bars, **({6: function.rom} if function.rom else {})}
    assert probed.keys() == views.keys(), f"sizing finds BARs {sorted(probed)}, the bus has {sorted(views)}"
    for index, bar in probed.items():
        assert bar.size & (bar.size - 1) == 0, f"BAR {index}: {bar.size:#x} bytes are no power of two"
        assert bar.size >= SMALLEST[bar.kind], f"BAR {index}: {bar.size} bytes are too few for {bar.kind}"
        assert bar.size == views[index].size, f"BAR {index}: {bar.size:#x} bytes by sizing, {views[index].size:#x} else"


def check_decoding(function: Function) -> None:
    """With memory and I/O disabled every BAR reads as all ones. Both are enabled afterwards. Raises: AssertionError."""
    function.enable(memory=False, io=False)
    for index, bar in function.bars.items():
        found = bar.read(0, _width(bar))
        assert set(found) == {0xFF}, f"BAR {index} answers {found.hex()} though its decoding is disabled"
    function.enable()


def check_save(device: Device) -> None:
    """What is saved can be restored and is the same when it is saved again, or a SaveError says what is in the way.

    Raises: AssertionError.
    """
    saved = _state(device)
    if saved is not None:
        device.restore({**saved, "clock_ns": device.clock.now_ns, "work": []})
        assert _differences(saved, _state(device)) == [], "saved, restored and saved again"


def check_reset(function: Function, device: Device) -> None:
    """Whatever a driver writes to the start of each BAR, a reset brings back what was there after power-on.

    Raises: AssertionError.
    """
    device.reset(ResetKind.POWER_ON)
    fresh = _state(device)
    function.reset()  # where there is firmware, it places the BARs now
    config = function.config.read(0, _CONVENTIONAL)
    function.enable()
    for bar in function.bars.values():
        width = _width(bar)
        for offset in range(0, min(bar.size, SCRIBBLED), width):
            bar.write(offset, b"\xff" * width)
        bar.read(0, width)  # posted writes have arrived
    function.reset()
    after = function.config.read(0, _CONVENTIONAL)
    changed = [f"{at:#x}" for at in range(_CONVENTIONAL) if after[at] != config[at]]
    assert not changed, f"after writes and a reset configuration space differs at {', '.join(changed)}"
    device.reset(ResetKind.POWER_ON)
    left = _state(device)
    function.reset()
    assert _differences(fresh, left) == [], "after writes and a power-on reset, compared with power-on"


def _width(bar: BarView) -> int:
    return 4 if bar.size > BYTEWISE else 1


def _state(device: Device) -> dict[str, Any] | None:
    """What `save` gives, without what time alone changes; None where the model refuses by name."""
    try:
        saved = device.save()
    except SaveError:
        return None
    return {name: value for name, value in saved.items() if name not in ("clock_ns", "work")}


def _differences(before: object, after: object, path: str = "") -> list[str]:
    """Where two saved states differ, by dotted path."""
    if isinstance(before, dict) and isinstance(after, dict):
        names = sorted(before.keys() | after.keys(), key=str)
        return [at for n in names for at in _differences(before.get(n), after.get(n), f"{path}.{n}".lstrip("."))]
    return [] if before == after else [path]
