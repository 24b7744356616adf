"""This machine's tests in a guest that sees this machine's files."""

import pytest
from umdev_testkit.fixtures import pass_in
from umdev_testkit.host_root import AGAIN

pytestmark = pytest.mark.guest

TESTS = """
import time
from pathlib import Path
import pytest

FIRST = Path(__file__).with_name("first").read_text() == Path("/proc/sys/kernel/random/boot_id").read_text()

def test_good():
    assert Path("/proc/self").exists()

def test_astray():
    assert not FIRST

def test_hangs():
    time.sleep(1000 if FIRST else 0)

def test_last():
    pass

def test_bad():
    assert Path("/nowhere").exists()

def test_skipped():
    pytest.skip("why not")
"""


@pytest.fixture
def run(kvm_guest, tmp_path):
    file = tmp_path / "test_guest_side.py"
    file.write_text(TESTS)
    (tmp_path / "first").write_text(kvm_guest.guest.run("cat /proc/sys/kernel/random/boot_id"))

    def go(names, **options):
        return pass_in(kvm_guest, (str(file), "-k", names), {"folder": tmp_path, **options})

    return go


def names(found):
    return [name.rpartition("::")[2] for name in found]


def test_what_failed_runs_once_more_by_itself_in_another_guest_and_is_named(run):
    assert names(run("good or astray")) == ["test_astray"]


def test_what_hung_runs_once_more_with_what_came_behind_it(run):
    assert names(run("good or hangs or last", silence=45)) == ["test_hangs"]


def test_what_fails_each_time_has_failed_with_all_outputs(run):
    with pytest.raises(AssertionError) as caught:
        run("good or bad", tries=2)
    first, second = str(caught.value).split(AGAIN.decode())
    assert "1 failed, 1 passed" in first
    assert "1 failed" in second
    assert "passed" not in second


def test_a_skip_is_no_pass(run):
    with pytest.raises(AssertionError, match="why not"):
        run("good or skipped")
