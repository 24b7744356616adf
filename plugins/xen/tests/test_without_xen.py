"""What a machine that is no dom0 is told."""

import errno
import os
import signal
import subprocess
import sys

import click.testing
import pytest
from umdev.errors import InvalidArgument, NotFound, NotSupported
from umdev_edu import Edu
from umdev_xen import Domain, bus, doctor, helper, hypervisor
from umdev_xen.command import command
from umdev_xen.helper import Helper
from umdev_xen.libraries import DEVICE_MODEL, FOREIGN_MEMORY, Library, failure
from umdev_xen.server import IoreqServer
from umdev_xen.supervisor import Supervisor
from umdev_xen.toolstack import DomainType, find_domain


def test_a_missing_library_names_the_package():
    absent = Library("libxenabsent.so.7", "libxenabsent7")
    with pytest.raises(NotSupported, match=r"libxenabsent\.so\.7.*apt install libxenabsent7"):
        absent.function("anything")


def test_a_library_too_old_names_the_version_that_has_it():
    """libc stands for a library without the function: it is there, and has it not."""
    old = Library("libc.so.6", "libxendevicemodel1", {"xendevicemodel_nr_vcpus": "1.4 (Xen 4.15)"})
    with pytest.raises(NotSupported, match=r"no xendevicemodel_nr_vcpus: it came with version 1\.4 \(Xen 4\.15\)"):
        old.call("xendevicemodel_nr_vcpus")
    with pytest.raises(NotSupported, match=r"version 1\.0"):
        old.address("xendevicemodel_close")


def test_versions_are_named_for_what_came_later():
    assert "xenforeignmemory_map_resource" in FOREIGN_MEMORY.since
    assert set(DEVICE_MODEL.since) == {"xendevicemodel_relocate_memory", "xendevicemodel_nr_vcpus"}


def test_errors_say_what_to_do():
    assert "is this a dom0 of Xen?" in str(failure("xendevicemodel_open", errno.ENOENT))
    assert "no such domain" in str(failure("xendevicemodel_nr_vcpus", errno.ESRCH))
    refused = failure("xendevicemodel_map_mem_type_to_ioreq_server", errno.EBUSY)
    assert "another device model" in str(refused)
    assert (refused.errno, refused.call) == (errno.EBUSY, "xendevicemodel_map_mem_type_to_ioreq_server")


def test_a_domain_where_no_xen_is():
    """Without the libraries the package is named, with them that this is no dom0."""
    with pytest.raises(Exception, match=r"apt install libxendevicemodel1|is this a dom0"):
        Domain(1)


@pytest.mark.parametrize("number", [-1, 0x7FF0, 70000, 1 << 70])
def test_a_number_that_no_domain_has(number):
    with pytest.raises(InvalidArgument, match="numbers 0 to 32751, which xl list shows"):
        Domain(number)


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (("edu", "no-such-type"), NotFound),
        (("mtty-1,port0",), InvalidArgument),
        (("mtty-1,speed=9",), InvalidArgument),
        (("mtty-1,port0=a:b",), InvalidArgument),
    ],
    ids=str,
)
def test_devices_are_checked_before_a_domain_is_waited_for(words, error):
    found = click.testing.CliRunner().invoke(command, ["--xen", "nobody-has-this-name", *words])
    assert isinstance(found.exception, error)


def test_the_helper_outlives_the_terminals_interrupt(monkeypatch, tmp_path):
    """A helper that answers 0 where it leads a session of its own."""
    program = """
import os, struct
while os.read(0, 24):
    os.write(0, struct.pack("=i", os.getsid(0) != os.getpid()))
"""
    (tmp_path / "granter.py").write_text(program)
    monkeypatch.setattr(helper, "__file__", str(tmp_path / "helper.py"))
    asked = Helper(3)
    asked.populate(0, 1)
    asked.close()


def test_a_signal_for_a_worker_that_has_just_ended(monkeypatch):
    supervisor = Supervisor("nobody-has-this-name", lambda _domid: 0)
    monkeypatch.setattr(supervisor, "_worker", (1 << 22) + 1)  # beyond PID_MAX_LIMIT (linux/threads.h): it is nobody's
    monkeypatch.setattr("umdev_xen.supervisor.named", lambda _name: os.kill(os.getpid(), signal.SIGTERM))
    assert supervisor.run() == 0


SUPERVISED = """
import os, signal, sys, time
from umdev_xen import supervisor

fork = os.fork

def forked():
    worker = fork()
    if worker == 0:  # before it is the worker's turn
        os.kill({victim}, signal.SIGTERM)
    return worker

def work(domid):
    time.sleep({seconds})
    return 5

os.fork = forked
supervisor.named = lambda name: 7
print(supervisor.Supervisor("name", work, once=True).run())
"""


@pytest.mark.parametrize(
    ("victim", "seconds", "code"), [("os.getppid()", 300, 0), ("os.getpid()", 0, -signal.SIGTERM)], ids=["ours", "its"]
)
def test_a_signal_for_a_worker_that_has_no_handlers_yet(victim, seconds, code):
    """It ends by the signal itself, which is no failure where this process was told to end it."""
    program = SUPERVISED.format(victim=victim, seconds=seconds)
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
    assert (said.stdout, said.stderr) == (f"{int(code)}\n", "")


def test_a_call_that_fails_for_the_moment_ends_no_domain(monkeypatch):
    server = IoreqServer.__new__(IoreqServer)
    for code, gone in ((errno.ENOMEM, False), (errno.EINTR, False), (errno.ESRCH, True), (errno.ENOENT, True)):

        def refuse(*_arguments, code=code):
            raise failure("xendevicemodel_get_ioreq_server_info", code)

        monkeypatch.setattr(server, "_call", refuse, raising=False)
        assert server.gone is gone


def test_the_bus_refuses_what_makes_no_sense():
    with Edu() as edu:
        with pytest.raises(InvalidArgument, match="slot 'x'"):
            bus.serve(edu, domain=1, slot="x")
        with pytest.raises(InvalidArgument, match="leave --fd out"):
            bus.serve(edu, domain=1, descriptor=3)
        with pytest.raises(NotFound, match="xl list"):
            bus.serve(edu, domain="nobody-has-this-name")
        assert edu.attachment is None


def test_the_host_drives_no_device_of_a_domain():
    with Edu() as edu, pytest.raises(NotSupported, match="umdev serve --bus xen --domain NAME"):
        bus.open_function(edu)


def test_a_domain_by_its_number():
    assert find_domain("17") == 17
    assert DomainType.of(intx=False) is DomainType.PVH


def test_doctor_has_a_row_with_a_remedy():
    rows = list(hypervisor.doctor())
    assert rows
    if rows[0].ok is None:
        assert rows[0].remedy


def test_doctor_names_a_missing_library_once(monkeypatch):
    monkeypatch.setattr(doctor, "LIBRARIES", (Library("libnone.so.1", "libnone1"),))
    (row,) = doctor.rows()
    assert (row.text, row.remedy) == ("libnone.so.1 is not installed", "apt install libnone1")


def test_importing_the_plugin_loads_no_library_of_xens():
    code = "import umdev_xen; print([line for line in open('/proc/self/maps') if 'libxen' in line])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
