"""What people and programs read: tables, JSON, warnings, and a sign of life for what takes longer than two seconds.

A table on a terminal is drawn by rich, which respects NO_COLOR; anywhere else it is plain aligned text. Nothing here
imports rich unless a table goes to a terminal.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
import textwrap
import threading
import time
from typing import TYPE_CHECKING, Any, TextIO

import click

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["dump_json", "is_terminal", "note", "paragraph", "table", "waiting"]

PATIENCE = 2.0
"""Seconds after which a wait is explained."""


def dump_json(value: Any) -> None:
    """Write a value as indented JSON, as mdevctl does; bytes become hexadecimal text."""
    click.echo(json.dumps(value, indent=2, default=bytes.hex))


def note(text: str) -> None:
    """Tell people something beside the command's output, in one line on stderr."""
    click.echo(f"umdev: {text}", err=True)


def is_terminal(stream: TextIO | None) -> bool:
    """Whether people look at it; Python has no stream for a descriptor that is closed."""
    return stream is not None and stream.isatty()


def table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Write rows under headers."""
    if is_terminal(sys.stdout):
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        drawn = Table(box=None, pad_edge=False, header_style="bold")
        for header in headers[:-1]:
            drawn.add_column(header, no_wrap=True)
        drawn.add_column(headers[-1], overflow="fold")  # the long one: a path is broken, never cut
        for row in rows:
            drawn.add_row(*(Text(cell) for cell in row))
        Console().print(drawn)
        return
    widths = [max(len(row[column]) for row in (headers, *rows)) for column in range(len(headers))]
    for row in (headers, *rows):
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        click.echo("  ".join(cells).rstrip())


def paragraph(text: str) -> None:
    """Write a long line: on a terminal it is broken between words, and what follows is indented."""
    if is_terminal(sys.stdout):
        width = shutil.get_terminal_size().columns
        text = textwrap.fill(text, width, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)
    click.echo(text)


@contextlib.contextmanager
def waiting(text: str) -> Iterator[None]:
    """Say what is being waited for once it has lasted two seconds, and every two seconds how long already."""
    started = time.monotonic()
    done = threading.Event()

    def tell() -> None:
        while not done.wait(PATIENCE):
            note(f"{text} ... {time.monotonic() - started:.0f} s")

    teller = threading.Thread(target=tell, daemon=True)
    teller.start()
    try:
        yield
    finally:
        done.set()
        teller.join()
