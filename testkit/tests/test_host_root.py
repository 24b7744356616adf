"""This machine's tests in a guest that sees this machine's files."""

import pytest
from umdev_testkit.fixtures import pass_in
from umdev_testkit.host_root import AGAIN

pytestmark = pytest.mark.guest

TESTS = """
from pathlib import Path
import pytest

def test_good():
    assert Path("/proc/self").exists()

def test_astray():
    first = not Path("/run/astray").exists()
    Path("/run/astray").touch()
    assert not first

def test_bad():
    assert Path("/nowhere").exists()

def test_skipped():
    pytest.skip("why not")
"""


@pytest.fixture
def run(kvm_guest, tmp_path):
    file = tmp_path / "test_guest_side.py"
    file.write_text(TESTS)

    def go(names):
        return pass_in(kvm_guest, (str(file), "-q", "-k", names), {"folder": tmp_path})

    return go


def test_what_failed_runs_once_more_by_itself_and_is_named(run):
    assert [name.rpartition("::")[2] for name in run("good or astray").split()] == ["test_astray"]


def test_what_fails_twice_has_failed_with_both_outputs(run):
    with pytest.raises(AssertionError) as caught:
        run("good or bad")
    first, _, second = str(caught.value).partition(AGAIN.decode())
    assert "1 failed, 1 passed" in first
    assert "1 failed" in second
    assert "passed" not in second


def test_a_skip_is_no_pass(run):
    with pytest.raises(AssertionError, match="why not"):
        run("good or skipped")
