"""C programs and libraries for the guest, compiled on this machine."""

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

__all__ = ["shared_library", "static_program"]

_COMPILE_TIME = 120.0  # seconds
_FLAGS = ("-std=gnu11", "-O2", "-Wall", "-Wextra")


def static_program(source: Path, *, flags: Sequence[str] = ()) -> Path:
    """Compile a C file with gcc and return the executable; the same text and flags are compiled once only.

    The result lies in the cache folder and is for reading. It runs in a guest that has no library. `flags` come after
    the kit's own (`-std=gnu11 -O2 -Wall -Wextra -static`).

    Raises:
        CompileFailed: there is no gcc, or it refused; its messages are in the text.
    """
    return _compiled([source], source.stem, [*_FLAGS, "-static", *flags])


def shared_library(sources: Sequence[Path], name: str, *, flags: Sequence[str] = ()) -> Path:
    """Compile C files of one folder into a library of that name (`"libmine.so"`), as `static_program` does.

    The guest must have the libraries that `flags` name (`-lm`).

    Raises:
        CompileFailed: there is no gcc, or it refused; its messages are in the text.
    """
    return _compiled(sources, name, [*_FLAGS, "-shared", "-fPIC", *flags])


def _compiled(sources: Sequence[Path], name: str, options: Sequence[str]) -> Path:
    if shutil.which("gcc") is None:
        raise CompileFailed("gcc is needed for programs of a guest: apt-get install gcc libc6-dev")
    # The preprocessed text changes with every header that matters, and with the compiler's own macros.
    texts = [_gcc([source], "-E", *options) for source in sources]
    key = hashlib.sha256(b"\0".join((*texts, *(option.encode() for option in options)))).hexdigest()[:20]

    def fill(folder: Path) -> None:
        _gcc(sources, *options, "-o", str(folder / name))

    return cache.entry(f"program-{name}-{key}", fill) / name


def _gcc(sources: Sequence[Path], *options: str) -> bytes:
    names = [str(source.absolute()) for source in sources]  # gcc runs in their folder
    try:
        # The sources before the options: libraries (-lm) are searched for what stands before them.
        done = subprocess.run(
            ["gcc", *names, *options], capture_output=True, timeout=_COMPILE_TIME, check=False, cwd=sources[0].parent
        )
    except subprocess.TimeoutExpired as error:
        raise CompileFailed(f"gcc has not compiled {names[0]} within {_COMPILE_TIME:.0f} s") from error
    if done.returncode:
        raise CompileFailed(f"gcc refused {', '.join(names)}:\n{done.stderr.decode(errors='replace')}")
    return done.stdout
