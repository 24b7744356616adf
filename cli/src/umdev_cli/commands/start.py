"""`umdev start`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click
from umdev.errors import Conflict, InvalidArgument, UmdevError

from umdev_cli import bus_options, complete, control, failures, hosts, launch, options, output, parents, vmm
from umdev_cli.definitions import Definitions
from umdev_cli.failures import Exit
from umdev_cli.meant import by_options, by_word, with_attributes

if TYPE_CHECKING:
    from umdev_cli.definitions import Named


@click.command(cls=bus_options.BusCommand)
@click.argument("device", metavar="[TYPE_OR_UUID]", required=False, shell_complete=complete.devices)
@options.uuid("UUID of the device: a defined one, or one for a new device.")
@options.parent("Parent of the device.")
@options.type_("Type of the device.")
@options.jsonfile
@click.option("-a", "--auto", is_flag=True, help="Start every defined device that is marked auto and doesn't run.")
@options.attributes
@options.bus
@options.wire_log
@click.option("--json", "as_json", is_flag=True, help="Write JSON instead of text.")
@options.force
def command(
    *,
    device: str | None,
    uuid: str | None,
    parent: str | None,
    type_: str | None,
    jsonfile: Path | None,
    auto: bool,
    attributes: dict[str, str],
    bus: str,
    wire_log: str | None,
    as_json: bool,
    force: bool,
    **of_bus: object,
) -> int:
    """Start a device in a process of its own, and print what QEMU needs to attach it.

    A defined device is named by its UUID; a new one by its type, as PARENT/TYPE where several parents offer it, or by
    mdevctl's options --parent with --type or --jsonfile. A new one's UUID is printed if none was given. Devices of a
    parent that share state share one process.

    With --auto one that can't be started is told, and the exit code is 1 when all have been tried.

    QEMU must share its guest memory:

    \b
    -object memory-backend-memfd,id=ram,size=2G,share=on
    -machine memory-backend=ram
    """
    del force
    how = _How(bus, absolute(wire_log), bus_options.given(of_bus))
    if auto:
        if device or uuid or parent or type_ or jsonfile or attributes or wire_log:
            raise click.UsageError("--auto excludes what is said of one device")
        return _start_all(how, as_json=as_json)
    if device is None:
        named = by_options(uuid, parent, type_, jsonfile)
    elif type_ is None and jsonfile is None:
        named = by_word(device, parent, uuid)
    else:
        raise click.UsageError(f"{device} says which device, so leave out --type and --jsonfile")
    described = _start(with_attributes(named, attributes), how)
    if as_json:
        output.dump_json(_shown(described))
        return Exit.OK
    _tell(described, known=named.uuid in (uuid, device and device.lower()))
    # For people; programs read it from --json, and what is well prints nothing on stderr.
    if output.is_terminal(sys.stderr) and (line := vmm.advice(described["environment"])):
        click.echo(line, err=True)
    return Exit.OK


class _How(NamedTuple):
    """How devices are served."""

    bus: str
    wire_log: str | None
    options: dict[str, Any]


def _start(named: Named, how: _How) -> dict[str, Any]:
    """What `show` says of the device once it runs. Raises: Conflict (it runs already), as `launch.start`."""
    if (claimed := hosts.running().get(named.uuid)) is not None:
        raise Conflict(f"{named.uuid} is running already: {claimed.type} of {claimed.parent} in process {claimed.pid}")
    owner = parents.check(named.parent, named.definition)
    definition = named.definition
    request = control.Add(
        named.uuid, definition.mdev_type, definition.attributes(), None, how.wire_log, how.options
    )  # fmt: skip
    with output.waiting(f"starting {definition.mdev_type} {named.uuid}"):
        return launch.start(named.parent, how.bus, request, shared=owner.shared_process)


def _start_all(how: _How, *, as_json: bool) -> Exit:
    running = {(claimed.parent, uuid) for uuid, claimed in hosts.running().items()}
    damaged: list[InvalidArgument] = []
    code, started = Exit.OK, []
    for named in Definitions().all(damaged=damaged.append):
        if named.definition.start == "auto" and (named.parent, named.uuid) not in running:
            try:
                started.append(_start(named, how))
            except UmdevError as error:
                output.note(f"{named.uuid} of {named.parent}: {failures.line(error)}")
                code = Exit.FAILED
    for damage in damaged:  # nobody knows whether it is marked
        output.note(failures.line(damage))
        code = Exit.FAILED
    if as_json:
        output.dump_json([_shown(described) for described in started])
    else:
        for described in started:
            _tell(described, known=False)
    return code


def _shown(described: dict[str, Any]) -> dict[str, Any]:
    shown = ("uuid", "parent", "type", "pid", "socket", "device", "environment", "log")
    return {name: described[name] for name in shown}


def _tell(described: dict[str, Any], *, known: bool) -> None:
    if not known:
        click.echo(described["uuid"])
    if described["device"] is not None:
        click.echo(f"-device '{described['device']}'")


def absolute(path: str | None) -> str | None:
    """A path that still holds when the host process has left the current folder."""
    return None if path is None else str(Path(path).absolute())
