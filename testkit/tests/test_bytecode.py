"""Bytecode for guests: what can be imported has it, and what can't be compiled is left alone."""

import sys
from importlib.util import cache_from_source
from pathlib import Path

import pytest
from umdev_testkit import bytecode


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    return tmp_path


def test_packages_are_compiled_once(folder, capsys):
    source = folder / "package" / "module.py"
    source.parent.mkdir()
    source.write_text("answer = 42\n")
    bytecode.compile_packages()
    compiled = Path(cache_from_source(str(source)))
    assert compiled.exists()
    assert "compiling" in capsys.readouterr().err
    bytecode.compile_packages()
    assert capsys.readouterr().err == ""


def test_what_can_not_be_compiled_keeps_nobody_from_it(folder):
    (folder / "bad.py").write_text("def\n")
    good = folder / "good.py"
    good.write_text("answer = 42\n")
    bytecode.compile_packages()
    assert Path(cache_from_source(str(good))).exists()


def test_a_checkout_and_python_itself_are_left_alone(folder, monkeypatch):
    (folder / "pyproject.toml").write_text("")
    (folder / "module.py").write_text("")
    monkeypatch.setattr(sys, "path", [*sys.path, str(Path(sys.modules["os"].__file__).parent)])
    monkeypatch.setattr(bytecode.subprocess, "run", lambda *_arguments, **_options: pytest.fail("nothing to do"))
    bytecode.compile_packages()
