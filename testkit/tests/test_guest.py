"""Real guests: Debian's stock kernels in stock QEMU."""

import gc
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from umdev.errors import StateError
from umdev_testkit.errors import GuestDied, GuestFailed, GuestTimedOut, ModuleMissing, ScriptFailed
from umdev_testkit.guest import Guest, GuestConfig
from umdev_testkit.initramfs import build, busybox
from umdev_testkit.kernels import KERNELS, kernel
from umdev_testkit.programs import static_program

pytestmark = pytest.mark.guest


def runs(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def test_a_script_runs_to_its_end(linux_guest, tmp_path):
    run = linux_guest("echo out; echo err >&2; printf 'no newline'; uname -r")
    assert run.status == 0
    assert run.output == f"out\nerr\nno newline{kernel('cloud').release}\n"
    assert "Linux version 6.12" in run.dmesg
    assert "Power down" in run.console
    assert (tmp_path / "guest0/console.log").exists()
    assert b"out\nerr\nno newline" in (tmp_path / "guest0/commands.log").read_bytes()
    assert not (tmp_path / "guest0/initramfs.cpio").exists()


def test_a_status_is_an_error_that_shows_output_and_console(linux_guest):
    with pytest.raises(ScriptFailed, match=r"(?s)status 3\n--- output\nhello\n.*console.*from the kernel") as caught:
        linux_guest("echo '<2>from the kernel' >/dev/kmsg; echo hello; exit 3")
    assert (caught.value.status, caught.value.output) == (3, "hello\n")


def test_a_status_that_is_expected(linux_guest):
    run = linux_guest("echo hello; exit 3", check=False)
    assert (run.status, run.output) == (3, "hello\n")


def test_a_hung_script_is_killed(linux_guest):
    started = time.monotonic()
    linux_guest("true")
    limit = round(3 * (time.monotonic() - started) + 3)  # a busy machine boots slowly
    with pytest.raises(GuestTimedOut, match=rf"(?s)limit of {limit} s .*during a command.*before\n"):
        linux_guest("echo before; while :; do sleep 1; done", timeout=limit)


def test_a_kernel_that_panics_ends_the_guest(linux_guest):
    with pytest.raises(GuestDied, match=r"(?s)during a command.*sysrq triggered crash"):
        linux_guest("echo c >/proc/sysrq-trigger; sleep 60", timeout=60)


def test_a_kernel_that_does_not_boot(linux_guest):
    with pytest.raises(GuestDied, match=r"(?s)during the boot.*panic"):
        linux_guest("true", append="rdinit=/nonexistent root=/dev/nothing", timeout=60)


def test_a_device_that_nobody_serves(linux_guest, tmp_path):
    with pytest.raises(GuestDied, match=r"(?s)status 1 during the boot.*nobody\.sock"):
        linux_guest("true", devices=[tmp_path / "nobody.sock"])


def test_a_module_that_does_not_load(linux_guest):
    with pytest.raises(GuestFailed, match="cannot load module kvm_amd"):
        linux_guest("true", modules=["kvm_amd"], cpu="max,-svm")


def test_a_missing_module_is_found_before_the_boot(linux_guest):
    with pytest.raises(ModuleMissing, match=r"no module 'bochs'.*'full'"):
        linux_guest("true", modules=["bochs"])


def test_modules_load_with_their_dependencies(linux_guest):
    run = linux_guest("cut -d' ' -f1 /proc/modules; cat /sys/module/loop/parameters/max_loop",
                      modules=["uio_pci_generic", "loop max_loop=3"])  # fmt: skip
    assert set(run.output.split()) == {"uio", "uio_pci_generic", "loop", "3"}


@pytest.mark.parametrize("name", KERNELS)
def test_every_kernel_boots_and_loads_modules(linux_guest, name):
    modules = {"cloud": ["uio_pci_generic"], "full": ["bochs", "9p"], "bookworm": ["bochs"]}[name]
    with linux_guest.start(kernel=name, modules=modules) as guest:
        assert guest.run("uname -r").strip() == kernel(name).release
        loaded = guest.run("cut -d' ' -f1 /proc/modules").split()
        assert set(modules) <= set(loaded)
        # The serial driver must be there for cards on PCI, whichever kernel it is.
        assert guest.run("ls /sys/bus/pci/drivers").split().count("serial") == 1


def test_commands_one_by_one(linux_guest):
    with linux_guest.start() as guest:
        assert guest.run("x=1; echo one") == "one\n"
        assert guest.run("echo $x$0 >/dev/stdout") == "/run/umdev.script\n"  # each has a shell of its own
        assert guest.run("exit 5", check=False) == ""
        with pytest.raises(ScriptFailed) as caught:
            guest.run("cd /nonexistent")
        assert caught.value.status != 0
        assert guest.run("") == ""
        assert guest.run("cat") == ""  # standard input is empty, not the command port
        guest.run("(sleep 1; echo late >/tmp/late) & echo started")  # what runs on keeps nobody waiting
        guest.run("while ! [ -s /tmp/late ]; do sleep 0.1; done", timeout=30)
        assert "Linux version" in guest.dmesg


def test_output_that_looks_like_the_protocol(linux_guest):
    with linux_guest.start() as guest:
        forged = "\n" + "0" * 32 + " 0\numdev-guest ready\n"
        guest.write_file("/tmp/forged", forged.encode())
        assert guest.run("cat /tmp/forged; exit 4", check=False) == forged
        assert guest.execute("cat /tmp/forged; exit 4").status == 4
        # The port itself is taken: a script cannot answer in the agent's place.
        assert guest.execute('echo x > "/dev/$(ls /sys/class/virtio-ports)"').status != 0


def test_files_both_ways(linux_guest, tmp_path):
    every = bytes(range(256)) * 1000 + random.Random(1).randbytes(1 << 20)
    host = tmp_path / "tool"
    host.write_text("#!/bin/sh\necho run by path\n")
    host.chmod(0o755)
    with linux_guest.start(
        files={"/opt/given": every, "/opt/tool": host, "/opt/script": b"#!/bin/sh\necho bytes\n"}
    ) as guest:
        assert guest.read_file("/opt/given") == every
        guest.write_file("/new dir/it's", every, mode=0o600)
        assert guest.read_file("/new dir/it's") == every
        assert guest.run('stat -c %a "/new dir/it\'s"') == "600\n"
        guest.write_file("/new dir/it's", b"")
        assert guest.read_file("/new dir/it's") == b""
        assert guest.run("/opt/tool; /opt/script") == "run by path\nbytes\n"
        with pytest.raises(ScriptFailed, match="none"):
            guest.read_file("/none")
        with pytest.raises(ScriptFailed):
            guest.write_file("/proc/none", b"x")
        with pytest.raises(ValueError, match="command port"):
            guest.write_file("/a\nb", b"")


def test_a_static_program(linux_guest, tmp_path):
    source = tmp_path / "add.c"
    source.write_text('#include <stdio.h>\nint main(void) { return printf("%d\\n", 6 * 7) == 3 ? 9 : 1; }\n')
    run = linux_guest("/bin/add", files={"/bin/add": static_program(source)}, check=False)
    assert (run.status, run.output) == (9, "42\n")


def test_reboot_from_within_and_reset_from_outside(linux_guest):
    with linux_guest.start() as guest:
        boots = {guest.run("cat /proc/sys/kernel/random/boot_id; touch /tmp/gone")}
        pid = guest.pid
        guest.reboot()
        boots.add(guest.run("cat /proc/sys/kernel/random/boot_id; ls /tmp"))
        guest.reset()
        boots.add(guest.run("cat /proc/sys/kernel/random/boot_id; ls /tmp"))
        assert len(boots) == 3
        assert all(len(boot.splitlines()) == 1 for boot in boots)
        assert guest.pid == pid
        guest.poweroff()
        assert not runs(pid)


def test_a_guest_that_reboots_by_itself_has_died(linux_guest):
    with linux_guest.start() as guest, pytest.raises(GuestDied, match="status 0"):
        guest.run("reboot -f; sleep 60")


def test_the_monitor(linux_guest):
    with linux_guest.start(cpus=2, memory=384) as guest:
        assert guest.qmp.execute("query-status")["status"] == "running"
        assert "\naddress-space: memory\n" in guest.qmp.human("info mtree")
        assert len(guest.qmp.execute("query-cpus-fast")) == 2
        assert guest.run("nproc") == "2\n"
        assert 300_000 < int(guest.run("grep MemTotal /proc/meminfo").split()[1]) < 384 << 10


@pytest.mark.parametrize("shared", [True, False])
def test_memory_is_shared_or_not(linux_guest, shared):
    with linux_guest.start(shared_memory=shared) as guest:
        maps = Path(f"/proc/{guest.pid}/maps").read_text().splitlines()
        mapped = [line for line in maps if "memfd:memory-backend-memfd" in line and " rw-s " in line]
        assert bool(mapped) == shared


def test_all_threads_on_one_processor(linux_guest):
    ours = os.sched_getaffinity(0)
    with linux_guest.start(one_processor=True, cpus=2) as guest:
        threads = [int(path.name) for path in Path(f"/proc/{guest.pid}/task").iterdir()]
        assert len(threads) > 2
        (shared,) = {frozenset(os.sched_getaffinity(thread)) for thread in threads}
        assert len(shared) == 1
    assert os.sched_getaffinity(0) == ours


def test_waiting_for_the_console(linux_guest):
    with linux_guest.start(append="loglevel=7") as guest:
        guest.wait_for("Linux version")
        guest.run("(sleep 1; echo '<6>now it is' >/dev/kmsg) & true")
        guest.wait_for("now it is", timeout=30)
        with pytest.raises(GuestTimedOut, match="'never' on the console took too long"):
            guest.wait_for("never", timeout=0.2)
        with pytest.raises(GuestDied):
            guest.run("true")


def test_a_command_with_a_limit_of_its_own(linux_guest):
    with linux_guest.start() as guest:
        pid = guest.pid
        with pytest.raises(GuestTimedOut, match=r"(?s)a command took too long.*so far\nfirst\n"):
            guest.run("echo first; sleep 100", timeout=5)
        assert not runs(pid)


def test_kill(linux_guest):
    guest = linux_guest.start()
    pid = guest.pid
    guest.kill()
    assert not runs(pid)
    for call in (lambda: guest.run("true"), guest.reboot, guest.reset, guest.poweroff):
        with pytest.raises(GuestDied, match="status -9"):
            call()


def test_the_monitor_of_a_dead_guest(linux_guest):
    guest = linux_guest.start()
    guest.qmp.execute("query-status")
    guest.kill()
    with pytest.raises(EOFError):
        guest.qmp.execute("query-status")
    with pytest.raises(GuestDied, match="status -9"):
        guest.reboot()


def test_a_qemu_that_does_not_end_well(linux_guest):
    guest = linux_guest.start()
    os.kill(guest.pid, signal.SIGABRT)
    with pytest.raises(GuestDied, match="status -6"):
        guest.poweroff()


def test_the_fixture_ends_guests_and_closes_what_they_held(tmp_path):
    from umdev_testkit.fixtures import LinuxGuests

    gc.collect()  # what earlier tests left
    threads, descriptors = threading.active_count(), len(list(Path("/proc/self/fd").iterdir()))
    guests = LinuxGuests(tmp_path)
    guest = guests.start()
    guest.qmp.execute("query-status")
    pid = guest.pid
    guests.close()
    assert not runs(pid)
    assert len(list(Path("/proc/self/fd").iterdir())) == descriptors
    assert threading.active_count() == threads


def test_no_guest_outlives_the_process_that_started_it(tmp_path):
    program = (
        "import sys, os, signal; from pathlib import Path; from umdev_testkit.guest import *\n"
        "guest = Guest(GuestConfig(), Path(sys.argv[1])).start(); print(guest.pid, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, tmp_path], capture_output=True, text=True, timeout=120, check=False
    )
    pid = int(done.stdout)
    deadline = time.monotonic() + 30
    while runs(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not runs(pid)


def test_states(tmp_path):
    guest = Guest(GuestConfig(), tmp_path)
    with pytest.raises(StateError, match="not started"):
        guest.run("true")
    guest.close()
    with guest:
        with pytest.raises(StateError, match="started already"):
            guest.start()
        assert guest.run("echo hi") == "hi\n"


def test_guest_needs_no_pytest():
    program = "import sys, umdev_testkit.guest, umdev_testkit.fetch; sys.exit('pytest' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def test_busybox_reads_the_archive(tmp_path):
    image = build([], {"/opt/x y": b"content"}, 60)
    subprocess.run([busybox(), "cpio", "-id", "opt/*", "init"], input=image, cwd=tmp_path, check=True, timeout=60,
                   capture_output=True)  # fmt: skip
    assert (tmp_path / "opt/x y").read_bytes() == b"content"
    assert (tmp_path / "init").stat().st_mode & 0o777 == 0o755
