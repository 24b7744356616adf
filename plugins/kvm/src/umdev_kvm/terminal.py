"""The terminal of `umdev run`: keys go to the machine's serial port, Ctrl-] ends the machine."""

from __future__ import annotations

import contextlib
import os
import select
import sys
import termios
import threading
import time
import tty
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from .machine import Machine

_ESCAPE = 0x1D  # Ctrl-]
_PAUSE = 0.01
"""Seconds before a full serial port is tried again."""


@contextlib.contextmanager
def terminal(machine: Machine, end: Callable[[], None]) -> Iterator[None]:
    """Keys go to the serial port while the block runs; a terminal is raw meanwhile. Ctrl-] calls `end`, in a thread of
    its own.
    """
    done, wake = os.pipe()
    thread = threading.Thread(target=_read_keys, args=(machine, done, end), name="console")
    saved = termios.tcgetattr(0) if os.isatty(0) else None
    try:
        if saved is not None:
            tty.setraw(0)
        try:
            thread.start()
            yield
        finally:
            os.close(wake)
            if thread.ident is not None:
                thread.join()
            os.close(done)
    finally:
        if saved is not None:
            termios.tcsetattr(0, termios.TCSADRAIN, saved)
        sys.stdout.flush()


def _read_keys(machine: Machine, done: int, end: Callable[[], None]) -> None:
    """A person's keys are read even if the guest takes none, for Ctrl-] may be among them; a program's have time."""
    waiting = select.poll()
    waiting.register(0, select.POLLIN)
    waiting.register(done, select.POLLHUP)
    person = os.isatty(0)
    keys = b""
    while True:
        ready = {descriptor for descriptor, _ in waiting.poll(0 if keys else None)}
        if done in ready:
            return
        if 0 in ready and (person or not keys):
            more = _read()
            if _ESCAPE in more:
                end()
                return
            if not more:  # nobody types any more: the machine goes on
                waiting.unregister(0)
            keys += more
        keys = keys[machine.send(keys) :]
        if keys:
            time.sleep(_PAUSE)


def _read() -> bytes:
    """Some keys; none at the end, or when the terminal has gone."""
    try:
        return os.read(0, 256)
    except OSError:
        return b""
