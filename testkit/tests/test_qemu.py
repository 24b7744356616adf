"""Which QEMU is taken, and what is said about one that will not do. The programs stand in for QEMU's answers."""

import os
import subprocess
import sys

import pytest
from umdev_testkit import qemu
from umdev_testkit.errors import QemuNotFound, QemuTooOld


@pytest.fixture
def program(tmp_path):
    def make(version, devices='name "vfio-user-pci", bus PCI', name="qemu-system-x86_64"):
        path = tmp_path / f"{version}-{len(devices)}" / name
        path.parent.mkdir()
        path.write_text(
            f'#!/bin/sh\n[ "$1" = --version ] && echo "QEMU emulator version {version} (Debian)" && exit\n'
            f"cat <<'X'\n{devices}\nX\n"
        )
        path.chmod(0o755)
        return path

    return make


def test_the_one_that_is_named(program, monkeypatch):
    path = program("10.1.0")
    monkeypatch.setenv("UMDEV_QEMU", str(path))
    found = qemu.find()
    assert found.command == (str(path),)
    assert found.version == (10, 1, 0)


def test_a_named_one_that_is_too_old(program, monkeypatch):
    monkeypatch.setenv("UMDEV_QEMU", str(program("7.2.19")))
    with pytest.raises(QemuTooOld, match=r"is QEMU 7\.2\.19.*came with QEMU 10\.1.*trixie-backports"):
        qemu.find()


def test_a_named_one_without_vfio_user(program, monkeypatch):
    monkeypatch.setenv("UMDEV_QEMU", str(program("10.2.0", 'name "vfio-user-pci-not"')))
    with pytest.raises(QemuTooOld, match="built without vfio-user"):
        qemu.find()


@pytest.mark.parametrize("name", ["/nonexistent/qemu", "/bin/true"])
def test_a_named_one_that_is_none(name, monkeypatch):
    monkeypatch.setenv("UMDEV_QEMU", name)
    with pytest.raises(QemuNotFound, match=r"QEMU 10\.1"):
        qemu.find()


def test_by_hand(program):
    def start(path):
        command = [sys.executable, "-m", "umdev_testkit.qemu", "--version"]
        return subprocess.run(
            command, env=os.environ | {"UMDEV_QEMU": str(path)}, capture_output=True, text=True, check=False
        )

    assert start(program("10.1.0")).stdout == "QEMU emulator version 10.1.0 (Debian)\n"
    refused = start("/nonexistent/qemu")
    assert (refused.returncode, refused.stderr.count("\n")) == (1, 1)
    assert refused.stderr.startswith("umdev: $UMDEV_QEMU names '/nonexistent/qemu'")


def test_the_systems_one_if_it_will_do(program, monkeypatch):
    path = program("11.0.0")
    monkeypatch.delenv("UMDEV_QEMU", raising=False)
    monkeypatch.setenv("PATH", f"{path.parent}:{os.environ['PATH']}")
    assert qemu.find().command == (str(path),)


@pytest.mark.guest
def test_the_private_one_when_the_systems_is_too_old(program, monkeypatch):
    monkeypatch.delenv("UMDEV_QEMU", raising=False)
    monkeypatch.setenv("PATH", f"{program('7.2.0').parent}:{os.environ['PATH']}")
    found = qemu.find()
    assert found == qemu.private()
    assert found.version >= (10, 1, 0)
