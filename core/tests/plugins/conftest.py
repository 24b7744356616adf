"""Real small distributions in a folder: a module and its .dist-info, which a subprocess finds on its path."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path


class Site:
    """A folder of installed distributions."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def install(
        self, distribution: str, entry_points: dict[str, dict[str, str]], *, version: str = "1.0", **modules: str
    ) -> None:
        """`entry_points`: group -> name -> target; `modules`: name -> source."""
        info = self.folder / f"{distribution.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n")
        lines = []
        for group, points in entry_points.items():
            lines += [f"[{group}]", *(f"{name} = {target}" for name, target in points.items())]
        (info / "entry_points.txt").write_text("\n".join(lines) + "\n")
        for name, source in modules.items():
            (self.folder / f"{name}.py").write_text(textwrap.dedent(source))

    def run(self, program: str, **environment: str) -> str:
        """What a program prints that sees these distributions beside the real ones. It must not fail."""
        done = self.attempt(program, **environment)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def attempt(self, program: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run a program that may fail."""
        return subprocess.run(
            [sys.executable, "-W", "error", "-c", textwrap.dedent(program)],
            env={**os.environ, "PYTHONPATH": str(self.folder), **environment},
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )


@pytest.fixture
def site(tmp_path: Path) -> Site:
    """An empty folder on the path of the programs that it runs."""
    return Site(tmp_path)
