"""`umdev new`."""

from __future__ import annotations

import importlib.util
import keyword
import re
import shlex
import shutil
import sys
from importlib import resources
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING

import click
from umdev import device
from umdev.errors import Conflict, InvalidArgument
from umdev.plugins import Group, installed

if TYPE_CHECKING:
    from collections.abc import Iterator

_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
_OWN_CLASSES = ("Registers", "Status")
"""What the skeleton's device.py defines beside the device."""
_PCI_ID = re.compile(r"([0-9a-f]{4}):([0-9a-f]{4})", re.IGNORECASE)


@click.command
@click.argument("name")
@click.option(
    "--id", "pci_id", default="1234:0001", show_default=True, metavar="VVVV:DDDD", help="PCI vendor and device."
)
@click.option("--folder", type=click.Path(path_type=Path), metavar="PATH", help="Where to put it; ./NAME if left out.")
def command(name: str, pci_id: str, folder: Path | None) -> None:
    """Make a device model to begin with: a distribution with a device, its parent and its tests.

    NAME is that of the distribution, the parent and the type, in small letters and hyphens.
    """
    words = _words(name, pci_id)
    folder = folder or Path(name)
    if folder.exists():
        raise Conflict(f"{folder} exists: name another --folder")
    try:
        for path, content in _files(words):
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_text(content)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    click.echo(f"{folder}/ has a device to begin with. Next:")
    # An environment that uv made has no pip of its own, and another Python's would find no umdev.
    pip = "pip install" if _is_installed("pip") else f"uv pip install --python {shlex.quote(sys.prefix)}"
    place = shlex.quote(str(folder))
    click.echo(f"  {pip} --editable {place}\n  pytest {place}\n  umdev start {name}")


def _words(name: str, pci_id: str) -> dict[str, str]:
    module = name.replace("-", "_")
    if not _NAME.fullmatch(name):
        raise InvalidArgument(f"{name!r} can't name a device: small letters, digits and hyphens, as in my-card")
    longer = f"take a longer one, as in {name}-card"
    class_name = "".join(word.capitalize() for word in name.split("-"))
    if keyword.iskeyword(module) or keyword.iskeyword(class_name):
        raise InvalidArgument(f"{name} is a word of Python's own: {longer}")
    taken = [info.source for info in installed(Group.PARENTS) if info.name == name]
    if taken:
        raise Conflict(f"{name} is the name of a parent already, of {taken[0]}: {longer}")
    if module in sys.stdlib_module_names or module == "pytest" or _is_installed(module):
        raise InvalidArgument(f"{name} is the name of another Python module: {longer}")
    if class_name in device.__all__ or class_name in _OWN_CLASSES:
        raise InvalidArgument(f"{name} would be a class {class_name}, which the model needs for itself: {longer}")
    found = _PCI_ID.fullmatch(pci_id)
    if found is None:
        raise InvalidArgument(f"--id {pci_id} is no PCI id: four hexadecimal digits, a colon, and four more")
    return {
        "name": name,
        "module": module,
        "class_name": class_name,
        "vendor": found[1].lower(),
        "device": found[2].lower(),
    }


def _is_installed(module: str) -> bool:
    """Not so a mere folder of that name, which Python takes for a namespace."""
    found = importlib.util.find_spec(module)
    return found is not None and found.origin is not None


def _files(words: dict[str, str]) -> Iterator[tuple[str, str]]:
    package = f"src/{words['module']}"
    for path, source in (
        ("pyproject.toml", "pyproject.toml"),
        ("README.md", "README.md"),
        (f"{package}/__init__.py", "init.py"),
        (f"{package}/device.py", "device.py"),
        ("tests/test_device.py", "test_device.py"),
    ):
        text = resources.files("umdev_cli").joinpath("skeleton", f"{source}.in").read_text()
        yield path, Template(text).substitute(words)
