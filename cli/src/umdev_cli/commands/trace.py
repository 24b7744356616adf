"""`umdev trace`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from umdev_cli import client, complete, output

if TYPE_CHECKING:
    from umdev_cli.control import Entry

RECORDS = 16384


@click.command
@click.argument("device", metavar="UUID_OR_SOCKET", shell_complete=complete.running)
@click.option(
    "-f",
    "--filter",
    "patterns",
    metavar="PATTERN",
    multiple=True,
    help="Only names that match, with * and ?: registers (bar0.ring[2].*) and events (render.MI_*). May be given more "
    "than once.",
)
@click.option("-n", "--count", type=click.IntRange(min=1), help="End after so many lines.")
@click.option(
    "--records",
    type=click.IntRange(1, 1 << 20),
    default=RECORDS,
    show_default=True,
    help="Records of 64 bytes that each thread of the device's process keeps until they are read; a thread keeps the "
    "room until it ends or meets the next trace.",
)
@click.option("--json", "as_json", is_flag=True, help="Write one JSON object per line.")
def command(device: str, *, patterns: tuple[str, ...], count: int | None, records: int, as_json: bool) -> None:
    """Follow what the driver of a running device does: each access with the register's name, value and time it took.

    Beside accesses stand the device's own events, where its model tells any: a GPU's commands, for example. The command
    ends on Ctrl-C, with the device, or after --count lines. The device doesn't wait for it: what is not read in time is
    lost, and counted. While nobody traces, nothing is recorded.
    """
    first: int | None = None
    shown = lost = 0
    over = False
    try:
        for traced in client.trace(device, list(patterns), records):
            lost += traced.lost
            over = traced.over
            for entry in traced.entries[: None if count is None else count - shown]:
                first = entry.time if first is None else first
                click.echo(_json(entry) if as_json else f"{(entry.time - first) / 1e9:12.6f} {entry.text}")
                shown += 1
            if shown == count:
                break
    except KeyboardInterrupt:
        pass
    if lost:
        output.note(f"{lost} records came too fast and are lost; --records keeps more, --filter writes less")
    if over:
        output.note("the device has gone")


def _json(entry: Entry) -> str:
    return json.dumps({name: getattr(entry, name) for name in entry.__struct_fields__})
