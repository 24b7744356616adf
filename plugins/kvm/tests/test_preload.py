"""The preload library by itself: it harms no program, and lends what it says."""

from __future__ import annotations

import os
import shutil
import socket
import struct
import subprocess
import threading
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from umdev_kvm import vm_protector_wire as wire
from umdev_kvm.preload import ADDRESS_VARIABLE, DEVICE_VARIABLE, preload_path

from .conftest import ELSEWHERE

pytestmark = pytest.mark.kvm

TRUE = ["/bin/sh", "-c", "exit 7"]
NOBODY = 65534
DEVICE = Path("/dev/userfaultfd")


def run(environment, command=TRUE, **options):
    return subprocess.run(
        command, env={"LD_PRELOAD": str(preload_path()), **environment}, capture_output=True, text=True, timeout=30,
        check=False, **options,
    )  # fmt: skip


@pytest.fixture
def listener():
    """Somebody who listens where a protector would; anybody may connect."""
    with TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listening:
        Path(folder).chmod(0o755)
        path = Path(folder) / "p"
        listening.bind(str(path))
        path.chmod(0o777)
        listening.listen()
        listening.settimeout(60)
        yield listening, str(path)


def accept(listening, replies):
    """Take one VMM's message in a thread; the list gets (operation, body, descriptors)."""

    def take():
        link, _ = listening.accept()
        with link:
            descriptors = []
            operation, body = wire.receive(link, descriptors)
            replies.append((operation, wire.LEND.unpack(body), descriptors))
            wire.send(link, 0)

    thread = threading.Thread(target=take)
    thread.start()
    return thread


def lent(listener, environment, **options):
    listening, path = listener
    replies = []
    thread = accept(listening, replies)
    done = run({ADDRESS_VARIABLE: path, **environment}, ["/bin/true"], **options)
    thread.join()
    assert done.returncode == 0
    assert done.stderr == ""
    ((operation, numbers, descriptors),) = replies
    kinds = [str(Path(f"/proc/self/fd/{descriptor}").readlink()) for descriptor in descriptors]
    for descriptor in descriptors:
        os.close(descriptor)
    assert operation == wire.Operation.LEND
    return numbers, kinds


def test_a_program_started_without_standard_descriptors_gets_none(listener):
    """What it writes to its output would be said to the protector."""
    listening, path = listener
    replies = []
    threads = [accept(listening, replies), accept(listening, replies)]
    command = "exec 0<&- 1>&- 2>&-; exec sleep 300"
    environment = {**os.environ, "LD_PRELOAD": str(preload_path()), ADDRESS_VARIABLE: path}
    with subprocess.Popen(["/bin/sh", "-c", command], env=environment) as child:
        try:
            for thread in threads:
                thread.join()
            deadline = time.monotonic() + 60
            found = [0]
            while min(found, default=0) < 3 and time.monotonic() < deadline:  # what it has lent it closes at once
                time.sleep(0.01)
                found = sorted(int(entry.name) for entry in Path(f"/proc/{child.pid}/fd").iterdir())
        finally:
            child.kill()
    for _, _, descriptors in replies:
        for descriptor in descriptors:
            os.close(descriptor)
    assert len(replies) == 2
    assert found
    assert min(found) >= 3, found


def test_it_needs_no_library_and_no_symbol():
    content = preload_path().read_bytes()
    assert content[:4] == b"\x7fELF"
    table, entry_size, entries = *struct.unpack_from("<Q", content, 32), *struct.unpack_from("<HH", content, 54)
    tags = {}
    for number in range(entries):
        kind, _, offset, _, _, size = struct.unpack_from("<IIQQQQ", content, table + number * entry_size)
        if kind == 2:  # PT_DYNAMIC
            tags = dict(struct.iter_unpack("<QQ", content[offset : offset + size]))
    assert tags[25]  # DT_INIT_ARRAY: it does something
    assert 1 not in tags  # DT_NEEDED
    symbols = (
        [content[tags[6] + at : tags[6] + at + 24] for at in range(0, tags[5] - tags[6], 24)]
        if tags[5] > tags[6]
        else []
    )
    assert all(symbol == bytes(24) for symbol in symbols)


def test_a_program_without_the_variable_is_left_alone():
    done = run({})
    assert (done.returncode, done.stdout, done.stderr) == (7, "", "")


@pytest.mark.parametrize("path", ["/nonexistent/socket", "x" * 300, ""])
def test_a_program_runs_without_a_protector(path):
    done = run({ADDRESS_VARIABLE: path})
    assert done.returncode == 7
    assert done.stdout == ""
    said = "no protector listens" in done.stderr
    assert said == (0 < len(path) < 108)


def test_a_protector_that_does_not_answer_delays_a_program_and_no_more(listener):
    _, path = listener
    done = run({ADDRESS_VARIABLE: path}, ["/bin/true"])
    assert done.returncode == 0
    assert "did not take" in done.stderr


@pytest.mark.skipif(
    not os.access(DEVICE, os.R_OK | os.W_OK), reason=f"needs access to /dev/userfaultfd (root) {ELSEWHERE}"
)
def test_it_lends_two_descriptors_and_keeps_none(listener):
    noise = {f"NOISE{number}": "UMDEV_PROTECTOR=/wrong " * 40 for number in range(20)}
    numbers, kinds = lent(listener, {**noise, "XUMDEV_PROTECTOR": "/wrong", "UMDEV_PROTECTORX": "/wrong"})
    assert numbers == (wire.VERSION, 0, 2)
    assert kinds == ["anon_inode:[userfaultfd]"] * 2


@pytest.mark.skipif(os.geteuid() != 0 or not DEVICE.exists(), reason=f"needs root, to become somebody else {ELSEWHERE}")
def test_an_unprivileged_program_inherits_the_device_or_says_why_it_can_not(listener):
    library = Path(listener[1]).with_name("library")
    shutil.copy(preload_path(), library)
    environment = {"LD_PRELOAD": str(library)}
    numbers, kinds = lent(listener, environment, user=NOBODY, group=NOBODY, extra_groups=[])
    assert numbers[0] == wire.VERSION
    assert numbers[1] != 0
    assert kinds == []
    device = os.open(DEVICE, os.O_RDWR)
    try:
        environment[DEVICE_VARIABLE] = str(device)
        numbers, kinds = lent(listener, environment, user=NOBODY, group=NOBODY, extra_groups=[], pass_fds=[device])
    finally:
        os.close(device)
    assert numbers == (wire.VERSION, 0, 1)
    assert kinds == ["anon_inode:[userfaultfd]"] * 2
