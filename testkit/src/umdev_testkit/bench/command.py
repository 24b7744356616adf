"""The command `umdev bench`. Imported by umdev-cli only, which brings click, rich and its own output."""

from __future__ import annotations

import json
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click
from umdev.errors import NotSupported

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from .measure import Result

ATTEMPTS = 5
"""A row over its limit is measured again, with more rounds each time: what else runs here comes and goes."""


def _writable(context: click.Context, parameter: click.Parameter, path: str | None) -> str | None:
    """Said before minutes of measuring. Raises: InvalidArgument for a file that can't be written."""
    from umdev_cli.options import writable

    return path if path == "-" else writable(context, parameter, path)


@click.command("bench")
@click.option("--only", metavar="PREFIX", default="", help="Measure the rows whose names start with PREFIX.")
@click.option("--rounds", type=click.IntRange(min=7), default=9, show_default=True, help="Rounds per row.")
@click.option(
    "--json",
    "json_file",
    metavar="[FILE]",
    is_flag=False,
    flag_value="-",
    callback=_writable,
    help="Print JSON, to FILE or to stdout.",
)
@click.option("--check", is_flag=True, help="Exit with 1 if a row says failed in each of five measurements.")
def command(only: str, rounds: int, json_file: str | None, check: bool) -> None:
    """Measure umdev against bare C in the same run.

    ratio = this / bare C: lower is better. A row over its target says missed, and failed over 1.25 times its limit:
    the target, or the ratio that is reached instead for a reason that docs/explanation/speed gives. Without --check the
    exit code is 0 all the same.
    """
    from . import measure, select

    rows = select(only)
    results = []
    with _progress(len(rows) * rounds) as step:
        for row in rows:
            if row.note:
                click.echo(f"{row.name} {row.note}", err=True)
            try:
                result = measure(row, rounds, step)
            except NotSupported as error:
                click.echo(f"{row.name} is left out: {error}", err=True)
                continue
            for attempt in range(2, ATTEMPTS + 1 if check else 0):
                if result.verdict != "failed":
                    break
                result = measure(row, rounds * attempt)
            results.append(result)
    if json_file:
        text = json.dumps([result.as_json() for result in results], indent=2) + "\n"
        if json_file == "-":
            click.echo(text, nl=False)
        else:
            Path(json_file).write_text(text)
    if json_file != "-":
        _table(results)
    if check and any(result.verdict == "failed" for result in results):
        raise click.exceptions.Exit(1)


@contextmanager
def _progress(steps: int) -> Iterator[Callable[[], None]]:
    """A bar on stderr. It is drawn between rounds only: a drawing thread would be measured too."""
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), auto_refresh=False, transient=True) as progress:
        task = progress.add_task("rounds", total=steps)

        def step() -> None:
            progress.advance(task)
            progress.refresh()

        yield step


def _table(results: Sequence[Result]) -> None:
    from umdev_cli.output import table

    table(
        ["row", "median", "p99", "bare C", "ratio", "target", "verdict"],
        [
            [
                result.name,
                *(f"{time:,.1f} {result.unit}" for time in (result.median, result.p99, result.floor)),
                f"{result.ratio:.2f}",
                f"{result.target:.2f}",
                result.verdict,
            ]
            for result in results
        ],
    )
