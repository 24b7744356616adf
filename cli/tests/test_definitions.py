"""define, undefine, modify, list: mdevctl's files, flags and shapes."""

from __future__ import annotations

import errno
import json
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from umdev.errors import StateError
from umdev_cli.definitions import Definitions
from umdev_cli.main import run

if TYPE_CHECKING:
    from collections.abc import Callable

A, B = (str(uuid.UUID(int=number)) for number in (1, 2))

PARENTS = """
from umdev.device import Device, DeviceType, InvalidArgument, Parent, PciId

class Toy(Device):
    pci = PciId(vendor=0x1234, device=0x0001, class_code=0x00FF00)

WORDS = {"colour": "of the toy", "size": "in inches"}

class Toys(Parent):
    def check_attributes(self, type_id, attributes):
        super().check_attributes(type_id, attributes)
        if not attributes.get("size", "1").isdecimal():
            raise InvalidArgument("a toy's size is a number")

toys = Toys("toys", [DeviceType("toy", "A toy", Toy, attributes=WORDS), DeviceType("bare", "A bare toy", Toy)])
box = Parent("box", [DeviceType("toy", "A toy in a box", Toy)])
"""


@pytest.fixture(scope="session")
def parents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One file for all tests: a process loads a plugin once."""
    path = tmp_path_factory.mktemp("parents") / "toys.py"
    path.write_text(PARENTS)
    return path


class Command:
    """The command in this process."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.config = folder / "etc"
        self.folder = folder
        self.capsys = capsys

    def __call__(self, *arguments: str) -> str:
        code = run(list(arguments))
        captured = self.capsys.readouterr()
        assert (code, captured.err) == (0, "")
        return captured.out

    def fails(self, code: int, *arguments: str) -> str:
        assert run(list(arguments)) == code
        captured = self.capsys.readouterr()
        assert captured.out == ""
        assert captured.err.count("\n") == 1
        return captured.err.removeprefix("umdev: ").rstrip("\n")

    def file(self, value: Any) -> str:
        path = self.folder / "details.json"
        path.write_text(value if isinstance(value, str) else json.dumps(value))
        return str(path)


@pytest.fixture
def umdev(
    tmp_path: Path, parents: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Command:
    monkeypatch.setenv("UMDEV_RUNTIME_DIR", str(tmp_path / "run"))
    monkeypatch.setenv("UMDEV_CONFIG_DIR", str(tmp_path / "etc"))
    monkeypatch.setenv("UMDEV_PLUGINS", f"toys={parents}:toys,box={parents}:box")
    return Command(tmp_path, capsys)


class TestDefine:
    def test_writes_mdevctls_file(self, umdev: Command) -> None:
        assert umdev("define", "-u", A, "-p", "toys", "-t", "toy", "--auto") == ""
        assert json.loads((umdev.config / "toys" / A).read_text()) == {"mdev_type": "toy", "start": "auto", "attrs": []}

    def test_makes_up_a_uuid_and_prints_it(self, umdev: Command) -> None:
        identity = umdev("define", "--parent=toys", "--type=toy").strip()
        assert (umdev.config / "toys" / str(uuid.UUID(identity))).exists()

    def test_an_upper_case_uuid_is_the_same(self, umdev: Command) -> None:
        identity = str(uuid.UUID(int=0xABC))
        umdev("define", "-u", identity.upper(), "-p", "toys", "-t", "toy")
        assert umdev("list", "-d", "-u", identity).startswith(identity)

    def test_from_a_file(self, umdev: Command) -> None:
        details = {"mdev_type": "toy", "start": "auto", "attrs": [{"colour": "red"}, {"size": "5"}]}
        umdev("define", "-u", A, "-p", "toys", "--jsonfile", umdev.file(details))
        assert json.loads(umdev("list", "-d", "-u", A, "--dumpjson")) == details

    def test_attributes_are_optional_in_a_file(self, umdev: Command) -> None:
        umdev("define", "-u", A, "-p", "toys", "--jsonfile", umdev.file({"mdev_type": "toy", "start": "manual"}))

    @pytest.mark.parametrize(
        ("content", "said"),
        [
            ("{", "is no definition"),
            ('{"start": "auto"}', "missing required field `mdev_type`"),
            ('{"mdev_type": "toy", "start": "sometimes"}', "Invalid enum value 'sometimes' - at `$.start`"),
            ('{"mdev_type": "toy", "attrs": [{"colour": 5}]}', "Expected `str`, got `int` - at `$.attrs[0][...]`"),
            ('{"mdev_type": "toy", "attrs": [{"a": "1", "b": "2"}]}', "attribute 0 must have one name, not 2"),
            ('{"mdev_type": "toy", "speed": 1}', "unknown field `speed`"),
            ('{"mdev_type": "toy", "attrs": [{"colour": "1"}, {"colour": "2"}]}', "'colour' is given twice"),
            ('{"mdev_type": "toy", "attrs": [{"weight": "1"}]}', "no attribute 'weight'; it has: colour, size"),
        ],
    )
    def test_a_bad_file(self, umdev: Command, content: str, said: str) -> None:
        text = umdev.fails(2, "define", "-p", "toys", "--jsonfile", umdev.file(content))
        assert text.startswith("InvalidArgument: ")
        assert said in text
        assert not umdev.config.exists()

    @pytest.mark.parametrize(
        ("arguments", "code", "said"),
        [
            ((), 2, "UsageError: say which device"),
            (("-u", A), 2, "UsageError: a device that is not running needs --parent and --type"),
            (("-p", "toys"), 2, "UsageError: a device that is not running needs"),
            (("-u", "xyz", "-p", "toys", "-t", "toy"), 2, "InvalidArgument: 'xyz' is no UUID"),
            (("-u", A[:-1], "-p", "toys", "-t", "toy"), 2, "InvalidArgument: "),
            (("-p", "toys", "-t", "tor"), 3, "NotFound: parent toys has no type 'tor'; it offers: toy, bare"),
            (("-p", "tyos", "-t", "toy"), 3, "NotFound: no plugin 'tyos' in umdev.parents; there are: "),
            (("-p", "../toys", "-t", "toy"), 3, "NotFound: "),
            (("-p", "toys", "--jsonfile", "/nowhere"), 3, "NotFound: there is no file /nowhere"),
            (("-p", "toys", "--jsonfile", "x", "-t", "toy"), 2, "UsageError: --jsonfile excludes --type"),
            (("-u", A, "--jsonfile", "x"), 2, "UsageError: --jsonfile needs --parent"),
            (("-p", "toys", "-t", "toy", "--wrong"), 2, "NoSuchOption: "),
        ],
    )
    def test_bad_input(self, umdev: Command, arguments: tuple[str, ...], code: int, said: str) -> None:
        assert umdev.fails(code, "define", *arguments).startswith(said)
        assert not umdev.config.exists()

    def test_twice(self, umdev: Command) -> None:
        umdev("define", "-u", A, "-p", "toys", "-t", "toy")
        said = umdev.fails(5, "define", "-u", A, "-p", "toys", "-t", "bare")
        assert said == f"Conflict: {A} is defined for toys already"

    def test_of_a_running_device(self, umdev: Command) -> None:
        from umdev.plugins import plugins

        with plugins().load_parent("toys").create("bare", A):
            umdev("define", "-u", A)
            assert umdev("list") == f"{A} toys bare manual (defined)\n"
            assert umdev.fails(2, "define", "-u", A, "-t", "toy").startswith(
                f"InvalidArgument: {A} runs with type bare"
            )


class TestUndefine:
    def test_leaves_nothing(self, umdev: Command) -> None:
        umdev("define", "-u", A, "-p", "toys", "-t", "toy")
        umdev("undefine", "-u", A)
        assert list(umdev.config.iterdir()) == []
        assert umdev.fails(3, "undefine", "-u", A) == f"NotFound: {A} is not defined"

    def test_all_parents_or_one(self, umdev: Command) -> None:
        for parent in ("toys", "box"):
            umdev("define", "-u", A, "-p", parent, "-t", "toy")
        umdev("define", "-u", B, "-p", "toys", "-t", "toy")
        umdev("undefine", "-u", A, "-p", "box")
        assert umdev("list", "-d") == f"{A} toys toy manual\n{B} toys toy manual\n"
        umdev("define", "-u", A, "-p", "box", "-t", "toy")
        umdev("undefine", "-u", A)
        assert umdev("list", "-d") == f"{B} toys toy manual\n"


class TestModify:
    @pytest.fixture
    def modify(self, umdev: Command) -> Callable[..., dict[str, Any]]:
        umdev("define", "-u", A, "-p", "toys", "-t", "toy")

        def modify(*arguments: str) -> Any:
            assert umdev("modify", "-u", A, *arguments) == ""
            return json.loads(umdev("list", "-d", "-u", A, "--dumpjson"))

        return modify

    def test_start_and_type(self, modify: Callable[..., dict[str, Any]]) -> None:
        assert modify("--auto")["start"] == "auto"
        assert modify("--type", "bare") == {"mdev_type": "bare", "start": "auto", "attrs": []}
        assert modify("-m")["start"] == "manual"

    def test_attributes(self, modify: Callable[..., dict[str, Any]]) -> None:
        modify("--addattr", "colour", "--value", "red")
        assert modify("--addattr=size", "--value=5", "-i", "0")["attrs"] == [{"size": "5"}, {"colour": "red"}]
        assert modify("--delattr", "--index", "0")["attrs"] == [{"colour": "red"}]
        assert modify("--delattr")["attrs"] == []

    def test_from_a_file(self, modify: Callable[..., dict[str, Any]], umdev: Command) -> None:
        details = {"mdev_type": "toy", "start": "auto", "attrs": [{"colour": "blue"}]}
        assert modify("--jsonfile", umdev.file(details)) == details

    @pytest.mark.parametrize(
        ("arguments", "code", "said"),
        [
            (("--addattr", "colour"), 2, "UsageError: --addattr needs --value"),
            (("--value", "red"), 2, "UsageError: --value needs --addattr"),
            (("--addattr", "weight", "--value", "1"), 2, "InvalidArgument: type toy has no attribute 'weight'"),
            (("--addattr", "size", "--value", "big"), 2, "InvalidArgument: a toy's size is a number"),
            (("--addattr", "colour", "--value", "1", "-i", "1"), 2, "InvalidArgument: attribute index 1 is past"),
            (("--delattr",), 2, "InvalidArgument: there is no attribute to delete"),
            (("--index", "0", "--auto"), 2, "UsageError: --index needs --addattr or --delattr"),
            (("--auto", "--manual"), 2, "UsageError: --auto and --manual exclude"),
            (("--type", "tor"), 3, "NotFound: parent toys has no type 'tor'"),
            (("--live",), 4, "NotSupported: a running device can't be changed"),
            (("--jsonfile", "x", "--auto"), 2, "UsageError: --jsonfile excludes"),
            (("-p", "box"), 3, f"NotFound: {A} is not defined for box"),
        ],
    )
    @pytest.mark.usefixtures("modify")
    def test_bad_input(self, umdev: Command, arguments: tuple[str, ...], code: int, said: str) -> None:
        before = (umdev.config / "toys" / A).read_bytes()
        assert umdev.fails(code, "modify", "-u", A, *arguments).startswith(said)
        assert (umdev.config / "toys" / A).read_bytes() == before

    @pytest.mark.usefixtures("modify")
    def test_which_parent(self, umdev: Command) -> None:
        umdev("define", "-u", A, "-p", "box", "-t", "toy")
        said = umdev.fails(5, "modify", "-u", A, "--auto")
        assert said == f"Conflict: {A} is defined for several parents (box, toys); say which with --parent"
        umdev("modify", "-u", A, "--auto", "-p", "box")
        assert umdev("list", "-d") == f"{A} box toy auto\n{A} toys toy manual\n"


def test_a_configuration_folder_that_can_not_be_one(umdev: Command) -> None:
    umdev.config.write_text("mine")
    said = f"StateError: {umdev.config}: Not a directory; choose another folder with UMDEV_CONFIG_DIR"
    assert umdev.fails(1, "list", "-d") == said
    assert umdev.fails(1, "start", "--auto") == said
    assert umdev.fails(1, "define", "-p", "toys", "-t", "toy") == said
    umdev.config.unlink()
    umdev.config.mkdir()
    (umdev.config / "toys").write_text("mine")  # in the place of a parent's folder
    said = umdev.fails(1, "define", "-p", "toys", "-t", "toy")
    assert said.startswith(f"StateError: {umdev.config}/toys: File exists;")
    assert umdev("list", "-d") == ""


def test_a_folder_of_a_parent_that_may_not_be_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "toys").mkdir()

    def refuse(path: Path) -> bool:  # as Python before 3.14, for all but root
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "is_dir", refuse)
    with pytest.raises(StateError, match=f"^{tmp_path}/toys: Permission denied; choose another folder"):
        Definitions(tmp_path).files()


class TestList:
    def test_nothing(self, umdev: Command) -> None:
        for arguments in ((), ("-d",), ("-u", A), ("-p", "toys")):
            assert umdev("list", *arguments) == ""
            assert umdev("list", *arguments, "--dumpjson") == "[]\n"

    def test_shapes(self, umdev: Command) -> None:
        details = {"mdev_type": "toy", "start": "manual", "attrs": [{"colour": "red"}, {"size": "5"}]}
        umdev("define", "-u", A, "-p", "toys", "--jsonfile", umdev.file(details))
        umdev("define", "-u", A, "-p", "box", "-t", "toy", "-a")
        umdev("define", "-u", B, "-p", "toys", "-t", "bare")
        bare = {"mdev_type": "bare", "start": "manual", "attrs": []}
        boxed = {"mdev_type": "toy", "start": "auto", "attrs": []}
        assert json.loads(umdev("list", "-d", "--dumpjson")) == [
            {"box": [{A: boxed}], "toys": [{A: details}, {B: bare}]}
        ]
        assert json.loads(umdev("list", "-d", "-u", A, "--dumpjson")) == [{"box": [{A: boxed}], "toys": [{A: details}]}]
        assert json.loads(umdev("list", "-d", "-u", A, "-p", "toys", "--dumpjson")) == details
        assert json.loads(umdev("list", "-d", "-p", "box", "--dumpjson")) == [{"box": [{A: boxed}]}]
        assert umdev("list", "-dv", "-p", "toys") == (
            f"{A} toys toy manual\n"
            "  Attrs:\n"
            '    @{0}: {"colour":"red"}\n'
            '    @{1}: {"size":"5"}\n'
            f"{B} toys bare manual\n"
        )

    def test_a_single_device_defines_its_like(self, umdev: Command) -> None:
        umdev("define", "-u", A, "-p", "toys", "-t", "toy", "-a")
        umdev("modify", "-u", A, "--addattr", "colour", "--value", "red")
        dumped = umdev("list", "-d", "-u", A, "--dumpjson")
        umdev("define", "-u", B, "-p", "toys", "--jsonfile", umdev.file(dumped))
        assert umdev("list", "-d", "-u", B, "--dumpjson") == dumped

    def test_a_damaged_definition_is_named(self, umdev: Command) -> None:
        umdev("define", "-u", A, "-p", "toys", "-t", "toy")
        umdev("define", "-u", B, "-p", "toys", "-t", "toy")
        (umdev.config / "toys" / A).write_text("{")
        for arguments in (["list"], ["list", "-d"]):
            assert run(arguments) == 0
            captured = umdev.capsys.readouterr()
            assert captured.out == (f"{B} toys toy manual\n" if "-d" in arguments else "")
            assert captured.err.startswith(f"umdev: InvalidArgument: {umdev.config / 'toys' / A} is no definition: ")
        umdev("undefine", "-u", A)
        assert umdev("list", "-d") == f"{B} toys toy manual\n"


def test_types(umdev: Command) -> None:
    text = umdev("types", "-p", "toys")
    assert text.startswith("toys\n  toy\n    Available instances: 16\n    Device API: vfio-pci\n    Name: A toy\n")
    assert "    Attributes:\n      colour: of the toy\n      size: in inches\n" in text
    attributes = json.loads(umdev("types", "-p", "toys", "--json"))[0]["toys"][0]["toy"]["attributes"]
    assert attributes == {"colour": "of the toy", "size": "in inches"}
    toy = {"available_instances": 16, "device_api": "vfio-pci", "name": "A toy in a box"}
    assert json.loads(umdev("types", "-p", "box", "--dumpjson")) == [{"box": [{"toy": toy}]}]
    assert umdev.fails(3, "types", "-p", "tyos").startswith("NotFound: no plugin 'tyos'")
