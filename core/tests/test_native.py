"""Builds every `native/*_test.c` with all of the core's C files under the sanitizers, and runs it."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent
CORE = HERE.parent / "src" / "umdev"
SOURCES = sorted((CORE / "native").glob("*.c"))
SANITIZERS = {
    "address": ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"],
    "thread": ["-fsanitize=thread"],
}
OPTIONS = {
    "ASAN_OPTIONS": "abort_on_error=0:detect_leaks=1",
    "UBSAN_OPTIONS": "print_stacktrace=1",
    "TSAN_OPTIONS": "halt_on_error=1",
}
COMPILER = shutil.which("gcc") or shutil.which("cc")
FLAGS = ["-std=gnu11", "-O1", "-g", "-Wall", "-Wextra", "-Werror", "-Wno-unused-parameter", "-pthread"]
INCLUDES = [f"-I{CORE / 'include'}", f"-I{CORE / 'native'}", f"-I{HERE / 'native'}"]


def run(command: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=240, env={**os.environ, **environment}
    )


@pytest.fixture(scope="session", params=SANITIZERS)
def sanitized(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], Path]:
    """Flags of one sanitizer, and the core's objects built with them."""
    if COMPILER is None:
        pytest.skip("no C compiler: install gcc")
    flags = SANITIZERS[request.param]
    folder = tmp_path_factory.mktemp(request.param)
    probe = folder / "probe.c"
    probe.write_text("int main(void) { return 0; }\n")
    built = run([COMPILER, *flags, str(probe), "-o", str(folder / "probe")])
    if built.returncode or run([str(folder / "probe")]).returncode:
        pytest.skip(f"this compiler or kernel can't run {flags[0]}: install the compiler's sanitizer libraries")
    for source in SOURCES:
        compiled = run([COMPILER, *FLAGS, *flags, *INCLUDES, "-c", str(source), "-o", str(folder / f"{source.stem}.o")])
        assert not compiled.returncode, compiled.stderr
    return flags, folder


@pytest.mark.parametrize("test", sorted((HERE / "native").glob("*_test.c")), ids=lambda path: path.stem)
def test_native(sanitized: tuple[list[str], Path], test: Path) -> None:
    flags, folder = sanitized
    objects = [str(folder / f"{source.stem}.o") for source in SOURCES]
    program = folder / test.stem
    linked = run([str(COMPILER), *FLAGS, *flags, *INCLUDES, str(test), *objects, "-o", str(program), "-lm"])
    assert not linked.returncode, linked.stderr
    result = run([str(program)], **OPTIONS)
    assert result.returncode == 0, f"{result.stdout}\n{result.stderr}"
