"""Payloads in assembly language, by binutils."""

from __future__ import annotations

import subprocess
import tempfile
from functools import lru_cache
from pathlib import Path

_DIRECTIVE = {"real": ".code16", "protected": ".code32", "long": ".code64"}
EXIT = 0xF4


@lru_cache(maxsize=256)
def assemble(source: str, mode: str = "protected", address: int = 0x1_0000) -> bytes:
    """Machine code that runs at `address`. `exit VALUE` ends the run; `{name}` stands for nothing: use f-strings."""
    text = (
        ".intel_syntax noprefix\n"
        f"{_DIRECTIVE[mode]}\n"
        ".macro exit value\n mov eax, \\value\n out 0xf4, eax\n .endm\n"
        f".globl _start\n_start:\n{source}\n"
    )
    with tempfile.TemporaryDirectory() as folder:
        raw = Path(folder) / "payload"
        subprocess.run(["as", "--64", "-o", raw.with_suffix(".o"), "-"], input=text.encode(), check=True, timeout=60)
        subprocess.run(
            ["ld", "-m", "elf_x86_64", "-Ttext", hex(address), "--oformat", "binary", "-o", raw]
            + [raw.with_suffix(".o")],
            check=True,
            timeout=60,
        )
        return raw.read_bytes()
