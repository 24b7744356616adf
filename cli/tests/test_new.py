"""`umdev new` makes a device that works as it stands."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
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
        (("class",), "InvalidArgument: 'class' can't name a device"),
        (("random",), "InvalidArgument: random is the name of another Python module"),
        (("card", "--id", "1234"), "InvalidArgument: --id 1234 is no PCI id"),
    ],
)
def test_bad_names(umdev: Umdev, arguments: tuple[str, ...], said: str) -> None:
    assert umdev.fails(2, "new", *arguments).startswith(said)


def test_a_folder_that_exists_is_left_alone(umdev: Umdev) -> None:
    assert umdev.fails(5, "new", "card", "--folder", str(umdev.folder)).startswith("Conflict: ")
    assert umdev.folder.exists()
