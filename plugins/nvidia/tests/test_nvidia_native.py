"""Builds the vGPU's C with its C tests under the sanitizers, and runs them."""

import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent
PLUGIN = HERE.parent
NATIVE = PLUGIN / "src" / "umdev_nvidia" / "native"
COMPILER = shutil.which("gcc") or shutil.which("cc")
FLAGS = ["-std=gnu11", "-O1", "-g", "-Wall", "-Wextra", "-Werror", "-Wno-unused-parameter"]
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]


def test_the_c_is_clean(tmp_path):
    if COMPILER is None:
        pytest.skip("no C compiler: install gcc")
    probe = tmp_path / "probe.c"
    probe.write_text("int main(void) { return 0; }\n")
    if subprocess.run([COMPILER, *SANITIZERS, str(probe), "-o", str(tmp_path / "probe")], check=False).returncode:
        pytest.skip(f"this compiler has no {SANITIZERS[0]}: install its sanitizer libraries")
    sources = [*sorted((HERE / "native").glob("*.c")), *sorted(NATIVE.glob("*.c"))]
    program = tmp_path / "nv_test"
    includes = [f"-I{PLUGIN / 'include'}", f"-I{NATIVE}"]
    subprocess.run([COMPILER, *FLAGS, *SANITIZERS, *includes, *map(str, sources), "-o", str(program)], check=True)
    result = subprocess.run([str(program)], capture_output=True, text=True, timeout=240, check=False)
    assert (result.returncode, result.stdout) == (0, "ok\n"), result.stderr
