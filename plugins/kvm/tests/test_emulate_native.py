"""Emulated stores in C under the sanitizers; needs no KVM."""

import shutil
import subprocess
from pathlib import Path

import pytest

PLUGIN = Path(__file__).parents[1]
NATIVE = PLUGIN / "src" / "umdev_kvm" / "native"
FLAGS = ["-std=gnu11", "-O1", "-g", "-Wall", "-Wextra", "-Werror", "-Wno-unused-parameter", "-pthread"]
SANITIZERS = {
    "address": ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"],
    "thread": ["-fsanitize=thread"],
}


@pytest.mark.parametrize("name", SANITIZERS)
def test_stores_while_devices_come_and_go(tmp_path, name):
    if shutil.which("gcc") is None:
        pytest.skip("no C compiler: install gcc")
    program = tmp_path / "emulate_test"
    sources = [PLUGIN / "tests" / "native" / "emulate_test.c", NATIVE / "emulate.c"]
    includes = [f"-I{PLUGIN / 'include'}", f"-I{NATIVE}"]
    built = subprocess.run(
        ["gcc", *FLAGS, *SANITIZERS[name], *includes, *sources, "-o", program],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert built.returncode == 0, built.stderr
    done = subprocess.run([program], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
