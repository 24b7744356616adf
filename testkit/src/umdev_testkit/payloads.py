"""Payloads for bare machines, in assembly language; GNU binutils turns them into bytes."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from functools import lru_cache
from pathlib import Path

from umdev_testkit.errors import CompileFailed

__all__ = ["assemble"]

_DIRECTIVES = {"real": ".code16", "protected": ".code32", "long": ".code64"}
_PRELUDE = """.intel_syntax noprefix
.macro exit value
    mov eax, \\value
    out 0xf4, eax
.endm
.globl _start
_start:
"""
_SECONDS = 60


@lru_cache(maxsize=512)
def assemble(source: str, mode: str = "protected", address: int = 0x1_0000) -> bytes:
    """Return machine code that runs at `address` in "real", "protected" or "long" mode.

    The source is in Intel's syntax; `exit VALUE` is a macro that ends a run.

    Raises:
        CompileFailed: there is no binutils, or it refused; its messages are in the text.
    """
    if shutil.which("as") is None or shutil.which("ld") is None:
        raise CompileFailed("as and ld are needed for payloads: apt-get install binutils")
    with tempfile.TemporaryDirectory() as folder:
        built, linked = Path(folder) / "payload.o", Path(folder) / "payload"
        text = f"{_DIRECTIVES[mode]}\n{_PRELUDE}{source}\n"
        _run("as", "--64", "-o", str(built), "-", text=text)
        options = ("-m", "elf_x86_64", f"-Ttext={address:#x}", "--oformat=binary", "-o", str(linked))
        _run("ld", *options, str(built), text="")
        return linked.read_bytes()


def _run(*command: str, text: str) -> None:
    done = subprocess.run(command, input=text.encode(), capture_output=True, timeout=_SECONDS, check=False)
    if done.returncode:
        raise CompileFailed(f"{command[0]} refused a payload:\n{done.stderr.decode(errors='replace')}")
