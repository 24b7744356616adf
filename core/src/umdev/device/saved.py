"""Save and restore of a whole device, keyed by name and versioned: for snapshots, migration and hot reload.

What `save` returns is plain data (dict, list, str, int, bytes, None), so any serialiser keeps it.
"""

from __future__ import annotations

from types import FunctionType
from typing import TYPE_CHECKING, Any

from ..errors import SaveError
from . import state
from .blocks import Block
from .clock import NANOSECONDS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from .model import Device

SCHEMA = 1
"""The version of this format; a model's own is `Device.version`."""


def save(device: Device) -> dict[str, Any]:
    """Everything that makes the device what it is. The caller holds the device lock.

    Raises: SaveError for an undeclared attribute, a state that is no plain data or not of its default's kind, or
    pending work that is no method of the model.
    """
    _refuse_undeclared(device)
    return {
        "schema": SCHEMA,
        "model": model_name(device),
        "version": device.version,
        "config": device.config.save(),
        "regions": {region.name: region.save() for region in device.regions.values()},
        "interrupts": device.interrupts.save(),
        "state": state.save(device.state_owners()),
        "work": [_save_work(device, work.job, work.due_ns, work.period_ns) for work in device.work.pending],
        "clock_ns": device.clock.now_ns,
    }


def restore(device: Device, saved: Mapping[str, Any]) -> None:
    """Make the device what was saved. The caller holds the device lock; nothing waits in the work queue.

    Raises: SaveError if it was saved by another model or schema, by a version that `Device.upgrade` refuses, or is
    damaged.
    """
    try:
        _restore(device, saved)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise SaveError(f"this is no state of a {model_name(device)}: {type(error).__name__} {error}") from error


def _restore(device: Device, saved: Mapping[str, Any]) -> None:
    if saved.get("schema") != SCHEMA:
        raise SaveError(f"this state has schema {saved.get('schema')!r}; this umdev reads {SCHEMA}")
    if saved["model"] != model_name(device):
        raise SaveError(f"this is the state of a {saved['model']}, not of a {model_name(device)}")
    if saved["version"] != device.version:
        saved = device.upgrade(dict(saved), saved["version"])
    names = {region.name: region for region in device.regions.values()}
    if wrong := names.keys() ^ saved["regions"].keys():
        raise SaveError(f"BAR {min(wrong)} is only on one side")
    jobs = [_find_job(device, **job) for job in saved["work"]]
    clock_ns = _time(saved["clock_ns"])
    device.config.restore(saved["config"])
    for name, region in names.items():
        region.restore(saved["regions"][name])
    device.interrupts.restore(saved["interrupts"])
    state.restore(device.state_owners(), saved["state"])
    device.clock.set_ns(clock_ns)
    for method, in_ns, period_ns in jobs:
        device.after(in_ns / NANOSECONDS, method, period=period_ns / NANOSECONDS)


def model_name(device: Device) -> str:
    """What identifies the model in saved state: the type it was made as, else its class."""
    return device.context.type.id if device.context.type else type(device).__name__


def _refuse_undeclared(device: Device) -> None:
    for path, owner in device.state_owners().items():
        extra = device.undeclared(owner)
        if extra:
            where = f"{path}.{extra[0]}" if path else extra[0]
            raise SaveError(
                f"{type(owner).__name__}.{extra[0]} ({where}) is not declared, so it would be lost: "
                f"write `{extra[0]} = State(...)` in the class, with save=False if it is a host resource"
            )


def _save_work(device: Device, job: Callable[[], object], due_ns: int, period_ns: int) -> dict[str, Any]:
    owner = getattr(job, "__self__", None)
    method = getattr(job, "__name__", "?")
    for path, candidate in device.state_owners().items():
        if candidate is owner and _is_of_model(candidate, method):
            in_ns = max(0, due_ns - device.clock.now_ns)
            return {"owner": path, "method": method, "in_ns": in_ns, "period_ns": period_ns}
    raise SaveError(f"pending work {job!r} can't be saved: give `after` a method of the model's own, no lambda")


def _find_job(
    device: Device, owner: str, method: str, in_ns: int, period_ns: int
) -> tuple[Callable[[], object], int, int]:
    found = device.state_owners().get(owner)
    if found is None or not _is_of_model(found, method):
        raise SaveError(f"saved work calls {owner or type(device).__name__}.{method}, which is no method of the model")
    return getattr(found, method), _time(in_ns), _time(period_ns)


def _is_of_model(owner: object, method: str) -> bool:
    """Whether a device or block has this method from its model: what was saved may come from elsewhere, and must not
    name what the core does with devices and blocks, or what it calls by itself.
    """
    from .model import Device

    core = Device if isinstance(owner, Device) else Block
    return isinstance(getattr(type(owner), method, None), FunctionType) and not hasattr(core, method)


def _time(nanoseconds: int) -> int:
    if not 0 <= nanoseconds < 1 << 64 or not isinstance(nanoseconds, int):
        raise SaveError(f"{nanoseconds!r} is no time in nanoseconds")
    return nanoseconds
