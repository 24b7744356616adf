"""A short attack on the sanitized build; `python fuzz/attack.py FOLDER` is the long one."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ATTACK = Path(__file__).parent / "fuzz" / "attack.py"
MESSAGES = 170_000  # six environments of a tox run come here: a million in all
PATIENCE = 10.0  # seconds to an answer: here only a wedge counts, for the machine may be busy


def run(folder: Path, *options: str) -> None:
    result = subprocess.run(
        [sys.executable, str(ATTACK), str(folder), f"--messages={MESSAGES}", f"--limit={PATIENCE}", *options],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr


def test_sanitized(tmp_path: Path) -> None:
    if shutil.which("gcc") is None:
        pytest.skip("no gcc: install it to build with the sanitizers")
    found = subprocess.run(["gcc", "-print-file-name=libasan.so"], capture_output=True, text=True, check=True)
    if not Path(found.stdout.strip()).is_absolute():
        pytest.skip("gcc has no AddressSanitizer: install libasan (part of Debian's libgcc-12-dev)")
    run(tmp_path)


def test_installed(tmp_path: Path) -> None:
    run(tmp_path, "--plain")
