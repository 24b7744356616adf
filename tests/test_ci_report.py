"""`.ci/report.py` calls a run complete only if it was."""

import importlib.util
import sys
from pathlib import Path

import pytest
from umdev.errors import NotSupported
from umdev_testkit.plugin import _functions

SCRIPT = Path(__file__).parents[1] / ".ci" / "report.py"
PASSED = '<testcase name="a"/>'
FAILED = '<testcase name="a"><failure message="no"/></testcase>'
BROKEN = '<testcase name="a"><error message="collection failure"/></testcase>'
ELSEWHERE = "(the fixture {0} has it: {0}.pytest(...) runs these tests there)"
SKIPPED = '<testcase name="a"><skipped type="pytest.skip" message="needs a wish"/></testcase>'


@pytest.fixture
def report(monkeypatch):
    spec = importlib.util.spec_from_file_location("umdev_ci_report", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def folder(report, tmp_path):
    """What a complete run leaves."""
    for name in report.MUST_RUN:
        write(tmp_path / f"{name}.xml", PASSED)
    return tmp_path


def write(path, *cases):
    path.write_text(f"<testsuites><testsuite>{''.join(cases)}</testsuite></testsuites>")


def last_line(capsys):
    return capsys.readouterr().out.splitlines()[-1]


def test_a_complete_run(report, folder, capsys):
    assert report.main(folder) == 0
    assert last_line(capsys) == f"{len(report.MUST_RUN)} passed, 0 failed, 0 skipped"


@pytest.mark.parametrize("python", ["py311", "py312", "py313"])
def test_each_python_must_have_run_tests(report, folder, python):
    (folder / f"{python}-core.xml").unlink()
    assert report.main(folder) == 1
    write(folder / f"{python}-core.xml")
    assert report.main(folder) == 1


def test_real_guests_must_have_run(report, folder):
    (folder / "guest.xml").unlink()
    assert report.main(folder) == 1


def test_xen_must_have_run_and_nothing_of_it_may_be_skipped(report, folder):
    skipped = SKIPPED.replace("needs a wish", f"no {ELSEWHERE.format('xen_guest')}")
    write(folder / "xen.xml", PASSED, skipped)
    assert report.main(folder) == 1
    (folder / "xen.xml").unlink()
    assert report.main(folder) == 1


@pytest.mark.parametrize("case", [FAILED, BROKEN])
def test_a_failure_counts(report, folder, capsys, case):
    write(folder / "guest.xml", PASSED, case)
    assert report.main(folder) == 1
    assert last_line(capsys).endswith("passed, 1 failed, 0 skipped")


def test_the_test_kits_own_skip_is_excused_for_kvm_alone(report, folder, monkeypatch):
    def attached(device, attachment):
        raise NotSupported("not here")

    monkeypatch.setattr("umdev_testkit.functions.attached", attached)
    for bus, status in (("kvm", 0), ("xen", 1)):
        with pytest.raises(pytest.skip.Exception) as skipped:
            next(_functions(bus))(None)
        assert str(skipped.value) == f"not here {ELSEWHERE.format(f'{bus}_guest')}"
        write(folder / "guest.xml", PASSED, SKIPPED.replace("needs a wish", str(skipped.value)))
        assert report.main(folder) == status


def test_a_skip_needs_an_allowed_reason(report, folder, capsys, monkeypatch):
    write(folder / "guest.xml", PASSED, SKIPPED)
    assert report.main(folder) == 1
    assert "needs a wish" in capsys.readouterr().out
    monkeypatch.setattr(report, "ALLOWED_SKIPS", (r"needs a \w+",))
    assert report.main(folder) == 0
    assert last_line(capsys).endswith("0 failed, 1 skipped")


def test_nothing_at_all_is_a_failure(report, tmp_path, capsys):
    assert report.main(tmp_path) == 1
    assert last_line(capsys) == "0 passed, 0 failed, 0 skipped"
