"""C and its tests as one program under the compiler's sanitizers, run on this machine."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from umdev_testkit.errors import CompileFailed, SanitizerMissing

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["SANITIZERS", "SKIPPED", "run_sanitized"]

SANITIZERS = {
    "address": ("-fsanitize=address,undefined", "-fno-sanitize-recover=all"),
    "thread": ("-fsanitize=thread",),
}
"""Name -> flags. `address` includes leaks and undefined behaviour."""
SKIPPED = 77
"""The status of a program that can't run here and says why on stderr, as automake's tests do."""
_FLAGS = ("-std=gnu11", "-O1", "-g", "-Wall", "-Wextra", "-Werror", "-Wno-unused-parameter", "-pthread")
_OPTIONS = {"ASAN_OPTIONS": "detect_leaks=1", "TSAN_OPTIONS": "halt_on_error=1"}
_COMPILE_TIME = 390.0  # seconds
_HEADERS = Path(__file__).parent / "native"


def run_sanitized(
    sanitizer: str, sources: Sequence[Path], folder: Path, *, includes: Sequence[Path] = (), timeout: float = 240.0
) -> subprocess.CompletedProcess[str]:
    """Compile C files to one program in `folder`, warnings being errors, and run it; what it came to.

    They may include "umdev_check.h", for the macro CHECK(condition). A finding ends the program with a status other
    than 0, and stands in its stderr.

    Raises:
        SanitizerMissing: no compiler, or one without this sanitizer, or a kernel that can't run it.
        CompileFailed: the compiler's messages are in the text.
        subprocess.TimeoutExpired: it has not ended after `timeout` seconds; it was killed.
    """
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        raise SanitizerMissing("no C compiler: install gcc")
    flags = SANITIZERS[sanitizer]
    probe = folder / "probe.c"
    probe.write_text("int main(void) { return 0; }\n")
    built = _run([compiler, *flags, str(probe), "-o", str(folder / "probe")], _COMPILE_TIME)
    if built.returncode or _run([str(folder / "probe")], timeout).returncode:
        raise SanitizerMissing(
            f"this compiler or kernel can't run {flags[0]}: install the compiler's sanitizer libraries"
        )
    program = str(folder / "sanitized")
    where = [f"-I{folder}" for folder in (*includes, _HEADERS)]
    built = _run([compiler, *_FLAGS, *flags, *where, *map(str, sources), "-o", program], _COMPILE_TIME)
    if built.returncode:
        raise CompileFailed(built.stderr)
    return _run([program], timeout)


def _run(command: list[str], timeout: float) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=timeout, env={**os.environ, **_OPTIONS}
    )
