"""`umdev new` makes a device that works as it stands."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from umdev_cli.main import run

if TYPE_CHECKING:
    from pathlib import Path

    from .conftest import Umdev


@pytest.mark.parametrize(
    ("name", "options", "module", "ident"),
    [("my-card", (), "my_card", "00011234"), ("x2", ("--id", "BEEF:00aB"), "x2", "00abbeef")],
)
def test_its_tests_pass_and_it_is_offered(
    umdev: Umdev, name: str, options: tuple[str, ...], module: str, ident: str
) -> None:
    folder = umdev.folder / "made"
    said = umdev.out("new", name, "--folder", str(folder), *options)
    assert f"umdev start {name}" in said
    assert f" --editable {folder}\n" in said
    source = folder / "src"
    assert f"0x{ident}" in (source / module / "device.py").read_text()
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", os.devnull, "--rootdir", folder, folder],
        env={**os.environ, "PYTHONPATH": str(source)}, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert "2 passed" in done.stdout, done.stdout + done.stderr
    files = {path.stem: path.read_text() for path in (source / module).glob("*.py")}
    umdev.install(name, {"umdev.parents": {name: f"{module}:parent"}}, **{module: flat(files, module)})
    assert name in umdev.out("types")


def flat(files: dict[str, str], module: str) -> str:
    """Both files as one module, since the test's `install` knows no packages."""
    return files["device"] + "\n" + files["__init__"].replace("from .device import", "# from")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("My Card",), "InvalidArgument: 'My Card' can't name a device"),
        (("../away",), "InvalidArgument: '../away' can't name a device"),
        (("class",), "InvalidArgument: class is a word of Python's own: take a longer one, as in class-card"),
        (("true",), "InvalidArgument: true is a word of Python's own: take a longer one, as in true-card"),
        (("umdev-cli",), "InvalidArgument: umdev-cli is the name of another Python module"),
        (("random",), "InvalidArgument: random is the name of another Python module"),
        (("device-type",), "InvalidArgument: device-type would be a class DeviceType, which the model needs"),
        (("status",), "InvalidArgument: status would be a class Status, which the model needs for itself"),
        (("card", "--id", "1234"), "InvalidArgument: --id 1234 is no PCI id"),
    ],
)
def test_bad_names(umdev: Umdev, arguments: tuple[str, ...], said: str) -> None:
    assert umdev.fails(2, "new", *arguments).startswith(said)


def test_a_folder_that_exists_is_left_alone(umdev: Umdev) -> None:
    assert umdev.fails(5, "new", "card", "--folder", str(umdev.folder)).startswith("Conflict: ")
    assert umdev.folder.exists()


def test_the_name_of_an_installed_parent_is_taken(toys: Umdev) -> None:
    said = toys.fails(5, "new", "toys")
    assert said == (
        "Conflict: toys is the name of a parent already, of umdev-toys 1.0: take a longer one, as in toys-card"
    )
    assert not (toys.folder / "toys").exists()


@pytest.mark.parametrize(
    ("pip", "said"), [(True, "  pip install --editable"), (False, f"  uv pip install --python {sys.prefix} --editable")]
)
def test_an_environment_of_uv_has_no_pip(
    pip: bool, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    find = importlib.util.find_spec
    there = importlib.machinery.ModuleSpec("pip", None, origin="pip/__init__.py") if pip else None
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: there if name == "pip" else find(name))
    assert run(["new", "some-card", "--folder", str(tmp_path / "made")]) == 0
    assert said in capsys.readouterr().out
