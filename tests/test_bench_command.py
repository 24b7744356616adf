"""`umdev bench` as scripts call it."""

import dataclasses
import json

import pytest
from umdev_cli.main import run
from umdev_testkit.bench import rows

ROW = "memory/lookup1/c"


def umdev(capsys, *words):
    code = run(["bench", "--only", ROW, "--rounds", "7", *words])
    return code, capsys.readouterr().out


def check_results(text):
    (result,) = json.loads(text)
    assert set(result) == {"name", "median", "p99", "unit", "floor", "ratio", "runs"}
    assert (result["name"], result["unit"], result["runs"]) == (ROW, "ns", 7)
    assert result["ratio"] == pytest.approx(result["median"] / result["floor"], rel=0.02)


def test_json_on_stdout_is_json_alone(capsys):
    code, out = umdev(capsys, "--json")
    assert code == 0
    check_results(out)


def test_json_in_a_file_beside_the_table(capsys, tmp_path):
    file = tmp_path / "bench.json"
    code, out = umdev(capsys, "--json", str(file))
    assert code == 0
    check_results(file.read_text())
    assert ROW in out
    assert "target" in out


@pytest.mark.parametrize(("target", "code", "verdict"), [(1e-6, 1, "failed"), (1e6, 0, "ok")])
def test_check_fails_far_over_the_target(capsys, monkeypatch, target, code, verdict):
    monkeypatch.setattr(rows, "ROWS", tuple(dataclasses.replace(row, target=target) for row in rows.ROWS))
    found, out = umdev(capsys, "--check")
    assert found == code
    assert verdict in out
    assert umdev(capsys)[0] == 0  # without --check a slow row is told, not punished


def test_a_file_that_can_not_be_written_is_told_before_anything_is_measured(capsys, tmp_path):
    assert run(["bench", "--only", ROW, "--json", str(tmp_path / "nowhere" / "bench.json")]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.endswith(f"{tmp_path / 'nowhere'} does not exist\n")


def test_unknown_row(capsys):
    assert run(["bench", "--only", "nonsense"]) == 3
    assert ROW in capsys.readouterr().err
