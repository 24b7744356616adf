"""The rows of `umdev doctor` about machines: each says what was found, and what to do about what is missing."""

import errno

import pytest
from umdev_kvm import doctor
from umdev_kvm.probe import why_partial
from umdev_kvm.vm import open_failure

pytestmark = pytest.mark.kvm

CHECKS = [
    *("KVM machine", "Linux on KVM", "ioeventfd", "coalesced MMIO", "irqfd resample", "routes"),
    *("read-only slots", "pre-fault", "io_uring"),
]


def rows():
    return {row.check: row for row in doctor.rows()}


def test_what_this_machine_s_kvm_can_do(machine):
    found = rows()
    assert list(found) == CHECKS
    assert all(row.text and (row.ok or row.remedy) for row in found.values())
    for check in ("KVM machine", "ioeventfd", "coalesced MMIO", "irqfd resample", "routes", "read-only slots"):
        assert found[check].ok, f"every KVM on x86 has it: {found[check]}"


def test_whether_it_boots_linux(machine, monkeypatch):
    why = why_partial()
    monkeypatch.setattr(doctor, "why_partial", lambda: why)
    row = rows()["Linux on KVM"]
    assert row.ok is (True if why is None else None)
    assert row.ok or "umdev serve" in row.remedy


@pytest.mark.parametrize(
    ("why", "ok", "words"),
    [
        (None, True, ("umdev run", "")),
        ("processor 0 can't go on: KVM_EXIT_INTERNAL_ERROR 1; rip=0", None, ("INTERNAL_ERROR 1)", "VT-x or AMD-V")),
    ],
)
def test_either_answer_says_what_follows(machine, monkeypatch, why, ok, words):
    monkeypatch.setattr(doctor, "why_partial", lambda: why)
    row = rows()["Linux on KVM"]
    assert row.ok is ok
    assert words[0] in row.text
    assert words[1] in row.remedy
    assert "rip" not in row.text


@pytest.mark.parametrize(
    ("code", "remedy"), [(errno.ENOENT, "modprobe"), (errno.EACCES, "usermod -aG kvm"), (errno.EMFILE, "")]
)
def test_without_a_machine_the_rows_say_so(monkeypatch, code, remedy):
    def refuse(*_):
        raise open_failure("open(/dev/kvm)", -code)

    monkeypatch.setattr(doctor, "Vm", refuse)
    found = rows()
    assert list(found) == ["KVM machine", "io_uring"]
    assert found["KVM machine"].ok is None
    assert "no machine of umdev's own" in found["KVM machine"].text
    assert remedy in found["KVM machine"].remedy
