"""The C side under the sanitizers: two processors run while everything around them changes."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.kvm

PLUGIN = Path(__file__).parents[2]
NATIVE = PLUGIN / "src" / "umdev_kvm" / "native"
FLAGS = ["-std=gnu11", "-O1", "-g", "-Wall", "-Wextra", "-Werror", "-Wno-unused-parameter", "-pthread"]
SANITIZERS = {
    "address": ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"],
    "thread": ["-fsanitize=thread"],
}
NO_KVM = 77


@pytest.mark.parametrize("name", SANITIZERS)
def test_a_machine_in_turmoil(tmp_path, name):
    if shutil.which("gcc") is None:
        pytest.skip("no C compiler: install gcc")
    program = tmp_path / "machine_test"
    sources = [PLUGIN / "tests" / "native" / "machine_test.c", *sorted(NATIVE.glob("*.c"))]
    includes = [f"-I{PLUGIN / 'include'}", f"-I{NATIVE}"]
    built = subprocess.run(
        ["gcc", *FLAGS, *SANITIZERS[name], *includes, *sources, "-o", program],
        capture_output=True,
        text=True,
        timeout=390,
        check=False,
    )
    assert built.returncode == 0, built.stderr
    options = {
        "ASAN_OPTIONS": "detect_leaks=1",
        "TSAN_OPTIONS": "halt_on_error=1",
        "UBSAN_OPTIONS": "print_stacktrace=1",
    }
    done = subprocess.run(
        [program], capture_output=True, text=True, timeout=200, check=False, env={**os.environ, **options}
    )
    if done.returncode == NO_KVM:
        pytest.skip(f"{done.stderr.strip()} (the same test runs inside a TCG guest: test_in_guest.py)")
    assert done.returncode == 0, done.stdout + done.stderr
