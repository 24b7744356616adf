"""The C loop under the sanitizers, against requests of every kind."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent
PLUGIN = HERE.parent
SOURCES = [*sorted((PLUGIN / "src/umdev_xen/native").glob("*.c")), HERE / "native/loop_test.c"]
FLAGS = ["-std=gnu11", "-O1", "-g", "-Wall", "-Wextra", "-Werror", "-Wno-unused-parameter", "-pthread"]
INCLUDES = [f"-I{PLUGIN / 'include'}", f"-I{PLUGIN / 'src/umdev_xen/native'}"]
COMPILER = shutil.which("gcc") or shutil.which("cc")


def run(command, **environment):
    return subprocess.run(
        [str(word) for word in command], capture_output=True, text=True, check=False, timeout=280,
        env={**os.environ, **environment},
    )  # fmt: skip


@pytest.mark.parametrize("sanitizer", ["address,undefined", "thread"])
def test_the_loop(tmp_path, sanitizer):
    if COMPILER is None:
        pytest.skip("no C compiler: install gcc")
    flags = [f"-fsanitize={sanitizer}", "-fno-sanitize-recover=all"]
    probe = tmp_path / "probe.c"
    probe.write_text("int main(void) { return 0; }\n")
    built = run([COMPILER, *flags, probe, "-o", tmp_path / "probe"])
    if built.returncode or run([tmp_path / "probe"]).returncode:
        pytest.skip(f"this compiler or kernel can't run {flags[0]}: install the compiler's sanitizer libraries")
    program = tmp_path / "loop"
    built = run([COMPILER, *FLAGS, *flags, *INCLUDES, *SOURCES, "-o", program])
    assert not built.returncode, built.stderr
    done = run([program], ASAN_OPTIONS="detect_leaks=1", TSAN_OPTIONS="halt_on_error=1")
    assert done.returncode == 0, done.stderr
