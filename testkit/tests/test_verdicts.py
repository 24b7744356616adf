"""What is read off pytest's output, whole or broken off, and what a run leaves out."""

import subprocess
import sys

import pytest
from umdev_testkit.leave_out import LEAVE_OUT
from umdev_testkit.verdicts import VERBOSE, passed, unfinished

TESTS = """
import os
import pytest

@pytest.fixture
def torn():
    yield
    raise OSError

@pytest.mark.parametrize("what", ["a", "a b", "PASSED"])
def test_good(what): print("test_file.py::test_printed PASSED")
def test_good_too(): pass
def test_bad(): assert not "test_file.py::test_bad PASSED"
def test_torn(torn): pass
def test_skipped(): pytest.skip("why not")
def test_ends_it(): os._exit(3)
def test_behind(): pass
"""
GOOD = ["test_good[a]", "test_good[a b]", "test_good[PASSED]", "test_good_too"]


@pytest.fixture
def run(tmp_path, monkeypatch):
    (tmp_path / "test_file.py").write_text(TESTS)
    monkeypatch.delenv(LEAVE_OUT, raising=False)

    def go(*arguments):
        command = (sys.executable, "-m", "pytest", "-p", "umdev_testkit.leave_out", *VERBOSE, *arguments)
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False).stdout

    return go


@pytest.fixture
def leave_out(tmp_path, monkeypatch):
    file = tmp_path / "names"
    monkeypatch.setenv(LEAVE_OUT, str(file))
    return lambda names: file.write_text("".join(f"test_file.py::{name}\n" for name in names))


def short(names):
    return [name.removeprefix("test_file.py::") for name in names]


@pytest.mark.parametrize("quiet", [(), ("-q",), ("-ra", "--color=no")])
def test_a_run_that_is_broken_off(run, quiet):
    output = run(*quiet)
    assert short(passed(output)) == GOOD
    assert short(unfinished(output)) == ["test_bad", "test_torn", "test_ends_it"]


def test_a_run_to_its_end(run):
    output = run("-k", "good or bad")
    assert short(passed(output)) == GOOD
    assert short(unfinished(output)) == ["test_bad"]


def test_the_later_of_two_runs_counts(run, leave_out):
    output = run()
    leave_out([*GOOD, "test_ends_it", "test_torn"])
    output += run()
    assert short(passed(output)) == [*GOOD, "test_behind"]


def test_left_out_are_the_named_ones_and_no_namesakes(run, leave_out):
    leave_out(["test_good[a]"])
    assert short(passed(run("-k", "good"))) == GOOD[1:]
    assert "1 deselected" in run("-k", "good or too or bad or torn or skipped or ends or behind")


def test_nothing_is_left_out_where_there_is_no_list(run, tmp_path, monkeypatch):
    monkeypatch.setenv(LEAVE_OUT, str(tmp_path / "nowhere"))
    assert short(passed(run("-k", "good"))) == GOOD
