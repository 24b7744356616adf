"""C programs for the guest, compiled on this machine and linked statically."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from typing import TYPE_CHECKING

from umdev_testkit import cache
from umdev_testkit.errors import CompileFailed

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

__all__ = ["static_program"]

_COMPILE_TIME = 120.0  # seconds
_FLAGS = ("-std=gnu11", "-O2", "-static", "-Wall", "-Wextra")


def static_program(source: Path, *, flags: Sequence[str] = ()) -> Path:
    """Compile a C file with gcc and return the executable; the same text and flags are compiled once only.

    The result lies in the cache folder and is for reading. It runs in a guest that has no library. `flags` come after
    the kit's own (`-std=gnu11 -O2 -static -Wall -Wextra`).

    Raises:
        CompileFailed: there is no gcc, or it refused; its messages are in the text.
    """
    if shutil.which("gcc") is None:
        raise CompileFailed("gcc is needed for programs of a guest: apt-get install gcc libc6-dev")
    options = [*_FLAGS, *flags]
    # The preprocessed text changes with every header that matters, and with the compiler's own macros.
    text = _gcc(source, "-E", *options)
    key = hashlib.sha256(b"\0".join((text, *(option.encode() for option in options)))).hexdigest()[:20]

    def fill(folder: Path) -> None:
        _gcc(source, *options, "-o", str(folder / source.stem))

    return cache.entry(f"program-{source.stem}-{key}", fill) / source.stem


def _gcc(source: Path, *options: str) -> bytes:
    try:
        # The source before the options: libraries (-lm) are searched for what stands before them.
        done = subprocess.run(
            ["gcc", str(source), *options], capture_output=True, timeout=_COMPILE_TIME, check=False, cwd=source.parent
        )
    except subprocess.TimeoutExpired as error:
        raise CompileFailed(f"gcc has not compiled {source} within {_COMPILE_TIME:.0f} s") from error
    if done.returncode:
        raise CompileFailed(f"gcc refused {source}:\n{done.stderr.decode(errors='replace')}")
    return done.stdout
