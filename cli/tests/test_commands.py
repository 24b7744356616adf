"""The command tree: imports, add-on commands, plugins, doctor, errors."""

from __future__ import annotations

import errno
import json
import os
import pty
import re
import subprocess
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import pytest
from umdev.errors import StateError
from umdev.instances import InstanceClaims
from umdev_cli import hosts
from umdev_cli.lazy import ADDED, BUILTIN, Variants
from umdev_cli.main import cli

if TYPE_CHECKING:
    from .conftest import Umdev

A, B = (str(uuid.UUID(int=number)) for number in (1, 2))

LOUD = """
    import click

    @click.command("hello")
    @click.option("--loud", required=True)
    def command(*, loud):
        click.echo(f"HELLO {loud}")
"""
HELLO = """
    import click

    @click.command
    @click.argument("name")
    def command(name):
        \"\"\"Say hello.\"\"\"
        click.echo(f"hello {name}")
"""
IMPORTED = """
import sys
from umdev_cli.main import run
code = run(sys.argv[1:])
print("\\n".join(sorted(sys.modules)), file=sys.stderr)
sys.exit(code)
"""


def imported(umdev: Umdev, *arguments: str) -> set[str]:
    """The modules that a command imports."""
    done = subprocess.run(
        [umdev.command()[0], "-c", IMPORTED, *arguments],
        env=umdev.environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return set(done.stderr.split())


@pytest.mark.parametrize(
    ("arguments", "budget"), [(("--version",), 260), (("list",), 330), (("list", "-d", "--dumpjson"), 330)]
)
def test_import_budget(toys: Umdev, arguments: tuple[str, ...], budget: int) -> None:
    """Counted, since counts are steady and times are not; a bare interpreter has about 60 modules."""
    (toys.config / "toys").mkdir(parents=True)
    (toys.config / "toys" / "00000000-0000-0000-0000-000000000001").write_text('{"mdev_type": "toy"}')
    modules = imported(toys, *arguments)
    tops = {module.partition(".")[0] for module in modules}
    assert not tops & {"rich", "stevedore", "pluggy", "cffi", "_cffi_backend", "toy"}
    assert not {top for top in tops if top.startswith("umdev_")} - {"umdev_cli"}
    assert not {module for module in modules if re.match(r"umdev\.(device|attach|plugins\.manager|loopback)", module)}
    assert len(modules) <= budget, f"{len(modules)} modules"


def test_help_imports_no_command(toys: Umdev) -> None:
    toys.install("umdev-hello", {"umdev.commands": {"hello": "hello:command"}}, hello=HELLO)
    modules = imported(toys, "--help")
    assert not {"hello", "stevedore", "pluggy", "rich"} & modules
    assert not any(module.startswith("umdev_cli.commands") for module in modules)
    out = toys.out("--help")
    assert re.search(r"^  hello +From umdev-hello 1\.0\.$", out, re.MULTILINE)
    for name, text in BUILTIN.items():
        assert re.search(rf"^  {name} +{re.escape(text)}$", out, re.MULTILINE)


@pytest.mark.parametrize("name", BUILTIN)
def test_a_command_has_its_name_for_whoever_documents_it(name: str) -> None:
    """Else the reference would call it what its function is called."""
    command = cli.get_command(click.Context(cli), name)
    assert command is not None
    assert command.name == name


def test_without_a_command_the_plain_help(umdev: Umdev) -> None:
    done = umdev(code=2)
    assert done.stdout == ""
    assert done.stderr == umdev.out("--help")


def test_what_completes(toys: Umdev) -> None:
    toys("define", "-u", A, "-p", "toys", "-t", "toy")
    toys("start", "toy", "-u", B, "--bus", "tap")

    def complete(*words: str) -> set[str]:
        line, number = " ".join(["umdev", *words]), str(len(words))
        done = toys(_UMDEV_COMPLETE="bash_complete", COMP_WORDS=line, COMP_CWORD=number)
        assert done.stderr == ""
        return {row.partition(",")[2] for row in done.stdout.split()}

    assert complete("und") == {"undefine"}
    assert complete("start", "toy") == {"toy", "toy-in-box"}
    assert complete("serve", A[:4]) == {A}
    assert complete("start", "--bus", "t") == {"tap"}
    assert complete("types", "-p", "bo") == {"box", "bochs-display"} & set(toys.out("types").splitlines())
    assert complete("define", "-t", "bi") == {"big"}
    for verb, word in (("stop", B), ("show", B), ("trace", B), ("undefine", A), ("modify", A)):
        assert complete(verb, "0") == {word}
    toys.environment["UMDEV_PLUGINS"] = "nonsense"
    assert complete("start", "toy") == set()


@pytest.mark.parametrize("name", BUILTIN)
def test_every_command_has_help(umdev: Umdev, name: str) -> None:
    assert umdev.out(name, "--help").startswith(f"Usage: umdev {name} ")


def test_help_breaks_no_argument_for_qemu(umdev: Umdev) -> None:
    assert "\n  -object memory-backend-memfd,id=ram,size=2G,share=on\n" in umdev.out("start", "--help")


def test_version(umdev: Umdev) -> None:
    assert umdev.out("--version") == umdev.out("-V")
    assert re.fullmatch(r"umdev \d+\.\d+\.\d+\n", umdev.out("--version"))


class TestAddons:
    def test_a_command_of_an_addon(self, umdev: Umdev) -> None:
        umdev.install("umdev-hello", {"umdev.commands": {"hello": "hello:command"}}, hello=HELLO)
        assert umdev.out("hello", "you") == "hello you\n"
        assert umdev.fails(2, "hello").startswith(
            "MissingParameter: Missing argument 'NAME'. (see 'umdev hello --help')"
        )

    def test_only_the_used_one_is_imported(self, umdev: Umdev) -> None:
        umdev.install("umdev-hello", {"umdev.commands": {"hello": "hello:command"}}, hello=HELLO)
        umdev.install("umdev-bye", {"umdev.commands": {"bye": "bye:command"}}, bye="raise RuntimeError('imported')")
        assert umdev.out("hello", "you") == "hello you\n"
        said = umdev.fails(1, "bye")
        assert said == "PluginError: plugin commands/bye (umdev-bye 1.0) failed in import: RuntimeError: imported"

    def test_a_variant_is_chosen_by_its_option(self, umdev: Umdev) -> None:
        points = {"umdev.commands": {"hello": "hello:command", "hello.loud": "loud:command"}}
        umdev.install("umdev-hello", points, hello=HELLO, loud=LOUD)
        assert umdev.out("hello", "you") == "hello you\n"
        assert umdev.out("hello", "--loud", "you") == "HELLO you\n"
        assert "--loud" in umdev.out("hello", "--help")
        told = umdev.out("hello", "--loud", "--help")  # as help says
        assert told.startswith("Usage: umdev hello ")
        assert "--loud TEXT" in told
        assert umdev.out("hello", "--loud", "x", "-h") == told
        assert "hello.loud" not in umdev.out("--help")

    def test_a_variant_documents_itself_as_the_plain_command(self) -> None:
        plain = click.Command("plain", params=[click.Argument(["name"])], help="Say hello.")
        told = Variants("hello", plain, ["loud"])
        context = click.Context(told, info_name="hello")
        assert "NAME" in told.get_usage(context)
        assert "Say hello." in told.get_help(context)
        assert "umdev hello --loud --help" in told.get_help(context)

    def test_a_variant_without_the_plain_command(self, umdev: Umdev) -> None:
        umdev.install("umdev-loud", {"umdev.commands": {"hello.loud": "loud:command"}}, loud=LOUD)
        assert umdev.out("hello", "--loud", "you") == "HELLO you\n"
        assert umdev.fails(2, "hello", "you").startswith("UsageError: umdev hello needs --loud")

    def test_own_commands_are_taken(self, umdev: Umdev) -> None:
        umdev.install("umdev-hello", {"umdev.commands": {"list": "hello:command"}}, hello=HELLO)
        assert umdev.out("list") == ""
        assert "umdev has a command of that name" in umdev("plugins").stdout

    def test_what_is_no_command(self, umdev: Umdev) -> None:
        umdev.install("umdev-hello", {"umdev.commands": {"hello": "hello:thing"}}, hello="thing = 5")
        assert umdev.fails(1, "hello").endswith("TypeError: 5 is not a click command")

    def test_two_of_one_name(self, umdev: Umdev) -> None:
        for letter in "ab":
            umdev.install(f"umdev-{letter}", {"umdev.commands": {"hello": f"hello{letter}:command"}})
        assert "claimed by umdev-a 1.0 and by umdev-b 1.0" in umdev.fails(5, "hello")

    def test_unknown(self, umdev: Umdev) -> None:
        assert umdev.fails(2, "lits").startswith("UsageError: ")


class TestPlugins:
    def test_good_ones(self, toys: Umdev) -> None:
        rows = toys.out("plugins").splitlines()
        assert rows[0].split() == ["GROUP", "NAME", "DISTRIBUTION", "STATUS"]
        assert ["buses", "tap", "umdev-toys", "1.0", "ok"] in [row.split() for row in rows]

    def test_a_broken_one_is_listed_with_its_reason_and_others_work(self, toys: Umdev) -> None:
        toys.install("umdev-broken", {"umdev.parents": {"broken": "broken:parent"}}, broken="import no_such_library")
        found = {(row["group"], row["name"]): row for row in toys.json("plugins", "--json")}
        broken = found["parents", "broken"]
        assert (broken["ok"], broken["distribution"], broken["version"]) == (False, "umdev-broken", "1.0")
        assert "ModuleNotFoundError: No module named 'no_such_library'" in broken["error"]
        assert found["parents", "toys"]["ok"]
        done = toys("types")
        assert "toys\n  toy\n" in done.stdout
        assert "umdev-broken 1.0" in done.stderr
        assert toys.fails(1, "start", "-p", "broken", "-t", "x").startswith("PluginError: plugin parents/broken")

    def test_a_misspelt_hook(self, umdev: Umdev) -> None:
        source = """
            from umdev.hookspecs import hookimpl
            class Bus:
                @hookimpl
                def umdev_trap_regoin(self): ...
            bus = Bus()
        """
        umdev.install("umdev-typo", {"umdev.buses": {"typo": "typo:bus"}}, typo=source)
        (row,) = [row for row in umdev.json("plugins", "--json") if row["name"] == "typo"]
        assert "buses/typo (umdev-typo 1.0) failed in umdev_trap_regoin" in row["error"]
        assert "did you mean umdev_trap_region?" in row["error"]

    def test_a_conflict_exits_5_and_names_both(self, toys: Umdev) -> None:
        toys.install("other-toys", {"umdev.parents": {"toys": "toy:alone"}})
        both = "claimed by other-toys 1.0 and by umdev-toys 1.0"
        assert toys("plugins", code=5).stdout.count(both) == 2
        assert both in toys.fails(5, "start", "-p", "toys", "-t", "toy")
        done = toys("types", code=5)
        assert "box\n" in done.stdout
        assert both in done.stderr
        assert toys("types", UMDEV_DISABLE_PLUGINS="other-*").stderr == ""

    def test_without_loading(self, toys: Umdev) -> None:
        toys.install("umdev-broken", {"umdev.parents": {"broken": "broken:parent"}}, broken="raise SystemExit")
        assert "SystemExit" not in toys.out("plugins", "--no-load")
        assert "SystemExit" in toys.out("plugins")

    def test_a_parent_of_another_name(self, toys: Umdev) -> None:
        toys.install("umdev-alias", {"umdev.parents": {"alias": "toy:alone"}})
        assert "the parent's name is 'toys', the entry point's 'alias'" in toys.fails(1, "types", "-p", "alias")


class TestDoctor:
    def test_services_and_contributed_rows(self, toys: Umdev) -> None:
        rows = toys.json("doctor", "--json")
        for service in ("passthrough", "trap", "interrupt", "map", "pin", "protect", "translate"):
            assert any(row["service"] == service for row in rows), service
        for check in ("python", "kernel", "QEMU", "memlock limit", "userfaultfd", "buses/tap"):
            assert any(row["check"] == check for row in rows), check
        assert sum(row["check"] in ("/dev/kvm", "KVM machine") for row in rows) == 1
        assert {"service": "trap", "check": "tap water", "ok": None, "text": "cold", "remedy": "wait a little"} in rows
        assert all(row["remedy"] for row in rows if row["ok"] is False)

    def test_for_people(self, toys: Umdev) -> None:
        out = toys.out("doctor")
        assert re.search(r"^trap +tap water +missing +cold$", out, re.MULTILINE)
        assert "\ntap water: wait a little\n" in out

    def test_something_broken(self, toys: Umdev) -> None:
        toys.install("umdev-broken", {"umdev.buses": {"broken": "broken:bus"}}, broken="import no_such_library")
        done = toys("doctor", code=4)
        assert re.search(r"^host +buses/broken +BROKEN +PluginError: .*no_such_library", done.stdout, re.MULTILINE)

    @pytest.mark.parametrize(
        ("says", "text"),
        [
            ("QEMU emulator version 9.2.0", "9.2.0 at {path}: too old, vfio-user came with 10.1"),
            ("QEMU emulator version 10.0.7 (Debian)", "10.0.7 at {path}: too old, vfio-user came with 10.1"),
            ("QEMU emulator version 10.1.0", None),
            ("hello", "{path} does not say its version"),
        ],
    )
    def test_qemu(self, umdev: Umdev, says: str, text: str | None) -> None:
        path = umdev.folder / "qemu"
        path.write_text(f"#!/bin/sh\necho '{says}'\n")
        path.chmod(0o755)
        umdev.environment["UMDEV_QEMU"] = str(path)
        (row,) = [row for row in umdev.json("doctor", "--json") if row["check"] == "QEMU"]
        if text is None:
            assert row["ok"] is True
        else:
            assert row["text"] == text.format(path=path)
            assert "trixie-backports" in row["remedy"]

    def test_the_bench_says_what_makes_it_fail(self, umdev: Umdev) -> None:
        pytest.importorskip("umdev_testkit", reason="umdev-testkit is not installed; pip install it")
        assert "Without --check the exit code is 0" in " ".join(umdev("bench", "--help").stdout.split())

    def test_the_qemu_that_the_test_kit_has_fetched(self, umdev: Umdev) -> None:
        pytest.importorskip("umdev_testkit", reason="umdev-testkit is not installed; pip install it")
        prefix = umdev.folder / "cache" / "qemu-trixie"
        loader = prefix / "lib/x86_64-linux-gnu/ld-linux-x86-64.so.2"
        loader.parent.mkdir(parents=True)
        loader.write_text("#!/bin/sh\necho 'QEMU emulator version 11.1.3'\necho '\"vfio-user-pci\"'\n")
        loader.chmod(0o755)
        umdev.environment |= {"UMDEV_CACHE": str(prefix.parent), "PATH": "/bin"}

        def told() -> Any:
            return next(row for row in umdev.json("doctor", "--json") if row["check"] == "QEMU")

        assert told()["ok"] is None  # the folder is not whole
        assert told()["remedy"].endswith("python -m umdev_testkit.qemu --version")
        (prefix / "umdev-manifest.json").write_text(json.dumps({"files": {}}))
        row = told()
        assert (row["ok"], row["remedy"]) == (True, "")
        assert row["text"] == "11.1.3, fetched by the test kit; start it by python -m umdev_testkit.qemu"
        umdev.environment["UMDEV_QEMU"] = "/nowhere/qemu"  # what is named is meant
        row = told()
        assert row["ok"] is None
        assert row["remedy"].endswith(", or unset UMDEV_QEMU")

    def test_one_row_for_kvm(self, umdev: Umdev) -> None:
        source = """
            from umdev.hookspecs import hookimpl
            from umdev.plugins import Row
            class Hypervisor:
                name = "machine"
                @hookimpl
                def umdev_pin_pages(self): ...
                def doctor(self):
                    yield Row("host", "KVM machine", None, "/dev/kvm is missing", "modprobe kvm")
            hypervisor = Hypervisor()
        """
        umdev.environment["UMDEV_DISABLE_PLUGINS"] = "*/kvm,*/xen"
        checks = {row["check"] for row in umdev.json("doctor", "--json")}
        assert "/dev/kvm" in checks
        umdev.install("umdev-machine", {"umdev.hypervisors": {"machine": "machine:hypervisor"}}, machine=source)
        checks = {row["check"] for row in umdev.json("doctor", "--json")}
        assert "KVM machine" in checks
        assert "/dev/kvm" not in checks


class TestErrors:
    def test_a_command_that_is_not_there(self, umdev: Umdev) -> None:
        assert umdev.fails(2, "typs").startswith("UsageError: there is no command 'typs'; did you mean types?")
        assert umdev.fails(2, "qqqq") == "UsageError: there is no command 'qqqq' (see 'umdev --help')"
        umdev.environment["UMDEV_DISABLE_PLUGINS"] = "commands/*"
        for name, package in ADDED.items():
            said = umdev.fails(2, name, "--help")
            assert said.startswith(f"UsageError: {name} comes with an add-on: pip install {package}")

    def test_files_and_folders_that_can_not_be_used(self, toys: Umdev) -> None:
        said = toys.fails(2, "serve", "toy", "--bus", "tap", "--wire-log", "/nope/x")
        assert said == "InvalidArgument: --wire-log /nope/x: /nope does not exist"
        toys.fails(3, "serve", "robot", "--wire-log", str(toys.folder / "log"))
        assert not (toys.folder / "log").exists()
        assert toys.fails(3, "serve", "edu", "--socket-path", "/nope/a.sock").startswith("SocketPathError: /nope: ")
        taken = toys.folder / "taken"
        taken.touch()
        assert toys.fails(5, "serve", "edu", "--socket-path", str(taken)).startswith("SocketPathError: ")

    def test_a_runtime_folder_below_a_closed_one(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(_path: Path) -> None:
            raise PermissionError(errno.EACCES, "Permission denied")  # root would get in anywhere

        monkeypatch.setattr(Path, "stat", refuse)
        for look in (InstanceClaims(tmp_path / "run").used, lambda: hosts.tidy(tmp_path / "run")):
            with pytest.raises(StateError, match="Permission denied; choose another with UMDEV_RUNTIME_DIR"):
                look()

    def test_debug_shows_the_traceback(self, umdev: Umdev) -> None:
        done = umdev("--debug", "show", "xyz", code=2)
        assert "Traceback (most recent call last)" in done.stderr
        assert done.stderr.splitlines()[-1].startswith("umdev: InvalidArgument: 'xyz' is no UUID")
        assert "Traceback" not in umdev("show", "xyz", code=2).stderr

    @pytest.mark.parametrize("script", ['"$@" | true', '"$@" >&-'])
    def test_a_reader_that_goes_away_or_was_never_there(self, umdev: Umdev, script: str) -> None:
        done = subprocess.run(
            ["sh", "-c", script, "sh", *umdev.command("plugins", "--no-load")],
            env=umdev.environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, "")

    def test_a_malformed_environment(self, umdev: Umdev) -> None:
        said = umdev.fails(2, "plugins", UMDEV_PLUGINS="nonsense")
        assert said == "InvalidArgument: UMDEV_PLUGINS: 'nonsense' is not [GROUP/]NAME=MODULE:OBJECT"


def drawn(umdev: Umdev, columns: int, *words: str, **environment: str) -> bytes:
    """What a command writes to a terminal."""
    master, slave = pty.openpty()
    settings = {**umdev.environment, "TERM": "xterm-256color", "COLUMNS": str(columns), **environment}
    process = subprocess.Popen(umdev.command(*words), env=settings, stdout=slave)
    os.close(slave)
    seen = b""
    try:
        while part := os.read(master, 65536):
            seen += part
    except OSError:  # EIO: the other end is closed
        pass
    finally:
        os.close(master)
        process.wait(30)
    return seen


def test_doctor_on_a_narrow_terminal_cuts_nothing(umdev: Umdev) -> None:
    source = f"""
        from umdev.hookspecs import hookimpl
        from umdev.plugins import Row
        class Hypervisor:
            name = "long"
            @hookimpl
            def umdev_pin_pages(self): ...
            def doctor(self):
                yield Row("host", "a long row", None, "LD_PRELOAD=/{"x" * 120}end", "{"remedy " * 20}")
        hypervisor = Hypervisor()
    """
    umdev.install("umdev-long", {"umdev.hypervisors": {"long": "long:hypervisor"}}, long=source)
    umdev.environment["UMDEV_DISABLE_PLUGINS"] = "hypervisors/kvm,hypervisors/xen"
    text = drawn(umdev, 80, "doctor", NO_COLOR="1").decode().replace("\r", "")
    assert "\N{HORIZONTAL ELLIPSIS}" not in text
    assert text.count("x" * 10) >= 10
    lines = text[text.index("a long row: ") :].split("\n  ")
    assert {word for line in lines for word in line.split()[-5:]} <= {"remedy", "a", "long", "row:"}
    assert max(map(len, lines)) <= 80


@pytest.mark.parametrize("colour", [True, False])
def test_a_terminal_gets_colour_unless_no_color(umdev: Umdev, colour: bool) -> None:
    umdev.environment.pop("NO_COLOR", None)
    seen = drawn(umdev, 200, "plugins", "--no-load", **({} if colour else {"NO_COLOR": "1"}))
    assert b"loopback" in seen
    assert (b"\x1b[3" in seen) is False
    assert (b"\x1b[1m" in seen) is True  # bold headers are no colour
