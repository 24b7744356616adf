"""What a vendor's `import umdev.device` costs, and what it must never bring along."""

import subprocess
import sys

import pytest

ALLOWED = {
    "",
    "addresses",
    "device",
    "driver",
    "errors",
    "instances",
    "memory",
    "pci",
    "runtime",
    "services",
    "_calls",
    "_native",
}
FOREIGN = ("pluggy", "stevedore", "rich", "click", "msgspec", "asyncio", "importlib.metadata", "socket", "subprocess")


def imported(statement):
    code = f"import sys; before = set(sys.modules); {statement}; print(*sorted(set(sys.modules) - before))"
    return subprocess.run(
        [sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True, timeout=30
    ).stdout.split()


def test_a_vendor_sees_no_hypervisor_and_no_bus():
    modules = imported("import umdev.device")
    ours = {name.removeprefix("umdev").removeprefix(".").partition(".")[0] for name in modules if name[:5] == "umdev"}
    assert ours <= ALLOWED
    assert not set(FOREIGN) & set(modules)
    assert len(modules) < 160


@pytest.mark.parametrize("face", ["umdev.bus", "umdev.hypervisor"])
def test_the_other_faces_bring_no_command_line(face):
    modules = imported(f"import {face}")
    assert not {"rich", "click", "msgspec", "stevedore", "asyncio"} & set(modules)


def test_the_package_itself_is_nearly_empty():
    assert len([name for name in imported("import umdev") if name.startswith("umdev")]) <= 2
