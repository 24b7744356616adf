"""Four driver threads on one edu, with the core's C code built under ThreadSanitizer."""

import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

CORE = Path(__file__).parents[1] / "core"
ITERATIONS = 400

HAMMER = f"""
import threading
from umdev.loopback import bus
from umdev_edu import Edu

with Edu() as device, bus.open_function(device) as function:
    function.enable()
    bar = function.bars[0]

    def hammer(bit):
        for turn in range({ITERATIONS}):
            bar.write32(0x60, 1 << bit)  # raise, then acknowledge
            bar.write32(0x64, 1 << bit)
            bar.write32(0x80, turn)  # a plain store beside them
            bar.read32(0x24)
        bar.write32(0x60, 1 << bit + 8)

    threads = [threading.Thread(target=hammer, args=(bit,)) for bit in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert bar.read32(0x24) == 0xF00, hex(bar.read32(0x24))
"""


@pytest.fixture(scope="module")
def runtime():
    """The sanitizer's library, which must be loaded before Python."""
    if shutil.which("gcc") is None:
        pytest.skip("no gcc: install it to build with the sanitizer")
    asked = subprocess.run(["gcc", "-print-file-name=libtsan.so"], capture_output=True, text=True, check=True)
    if not Path(found := asked.stdout.strip()).is_absolute():
        pytest.skip("gcc has no libtsan: install libtsan2 (Debian) to run this")
    return found


@pytest.fixture(scope="module")
def instrumented(tmp_path_factory, runtime):
    """A copy of the package whose `_native` is built with -fsanitize=thread."""
    root = tmp_path_factory.mktemp("tsan")
    package = shutil.copytree(
        CORE / "src" / "umdev", root / "umdev", ignore=shutil.ignore_patterns("*.so", "__pycache__")
    )
    spec = importlib.util.spec_from_file_location("build_native", CORE / "build_native.py")
    build = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(build)
    build.ffi.emit_c_code(str(root / "_native.c"))
    includes = [package / "include", package / "native", sysconfig.get_path("include")]
    subprocess.run(
        [
            "gcc", "-shared", "-fPIC", "-std=gnu11", "-g", "-O1", "-pthread", "-fsanitize=thread",
            *(f"-I{folder}" for folder in includes),
            root / "_native.c", *sorted((package / "native").rglob("*.c")),
            "-o", package / "_native.abi3.so",
        ],
        check=True,
    )  # fmt: skip
    return root


def test_four_drivers_hammering_edu_lose_nothing_and_race_nowhere(runtime, instrumented):
    paths = os.pathsep.join([str(instrumented), *(path for path in sys.path if path)])
    done = subprocess.run(
        [sys.executable, "-c", HAMMER],
        env={**os.environ, "LD_PRELOAD": runtime, "PYTHONPATH": paths, "TSAN_OPTIONS": "exitcode=66"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert "ThreadSanitizer" not in done.stderr, done.stderr[-4000:]
    assert done.returncode == 0, done.stderr[-4000:]
