"""Builds the engine's C with its C tests under the sanitizers, and runs them."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent
PLUGIN = HERE.parent
SOURCE = PLUGIN / "src" / "umdev_softgpu"
COMPILER = shutil.which("gcc") or shutil.which("cc")
FLAGS = ["-std=gnu11", "-O1", "-g", "-Wall", "-Wextra", "-Werror", "-pthread"]
SANITIZERS = {
    "address": ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"],
    "thread": ["-fsanitize=thread"],
}
OPTIONS = {"ASAN_OPTIONS": "detect_leaks=1", "TSAN_OPTIONS": "halt_on_error=1"}


@pytest.mark.parametrize("sanitizer", SANITIZERS)
def test_softgpu(sanitizer: str, tmp_path: Path) -> None:
    if COMPILER is None:
        pytest.skip("no C compiler: install gcc")
    flags = SANITIZERS[sanitizer]
    probe = tmp_path / "probe.c"
    probe.write_text("int main(void) { return 0; }\n")
    if subprocess.run([COMPILER, *flags, str(probe), "-o", str(tmp_path / "probe")], check=False).returncode:
        pytest.skip(f"this compiler has no {flags[0]}: install its sanitizer libraries")
    sources = [*sorted((HERE / "native").glob("*.c")), *sorted((SOURCE / "native").glob("*.c"))]
    program = tmp_path / "softgpu_test"
    includes = [f"-I{PLUGIN / 'include'}", f"-I{SOURCE / 'include'}", f"-I{SOURCE / 'native'}"]
    subprocess.run([COMPILER, *FLAGS, *flags, *includes, *map(str, sources), "-o", str(program)], check=True)
    result = subprocess.run(
        [str(program)], capture_output=True, text=True, timeout=240, env={**os.environ, **OPTIONS}, check=False
    )
    assert (result.returncode, result.stdout) == (0, "ok\n"), result.stderr
