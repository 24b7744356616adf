"""The command tree: imports, add-on commands, plugins, doctor, errors."""

from __future__ import annotations

import os
import pty
import re
import subprocess
from typing import TYPE_CHECKING

import pytest
from umdev_cli.lazy import BUILTIN

if TYPE_CHECKING:
    from .conftest import Umdev

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
def test_every_command_has_help(umdev: Umdev, name: str) -> None:
    assert umdev.out(name, "--help").startswith(f"Usage: umdev {name} ")


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
        assert umdev.fails(2, "lits").startswith("NoSuchCommand: ")


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
        for check in ("python", "kernel", "/dev/kvm", "QEMU", "memlock limit", "userfaultfd", "buses/tap"):
            assert any(row["check"] == check for row in rows), check
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


class TestErrors:
    def test_debug_shows_the_traceback(self, umdev: Umdev) -> None:
        done = umdev("--debug", "show", "xyz", code=2)
        assert "Traceback (most recent call last)" in done.stderr
        assert done.stderr.splitlines()[-1].startswith("umdev: InvalidArgument: 'xyz' is no UUID")
        assert "Traceback" not in umdev("show", "xyz", code=2).stderr

    def test_a_reader_that_goes_away(self, umdev: Umdev) -> None:
        done = subprocess.run(
            ["sh", "-c", '"$@" | true', "sh", *umdev.command("plugins", "--no-load")],
            env=umdev.environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.stderr == ""

    def test_a_malformed_environment(self, umdev: Umdev) -> None:
        said = umdev.fails(2, "plugins", UMDEV_PLUGINS="nonsense")
        assert said == "InvalidArgument: UMDEV_PLUGINS: 'nonsense' is not [GROUP/]NAME=MODULE:OBJECT"


@pytest.mark.parametrize("colour", [True, False])
def test_a_terminal_gets_colour_unless_no_color(umdev: Umdev, colour: bool) -> None:
    master, slave = pty.openpty()
    environment = {**umdev.environment, "TERM": "xterm-256color", "COLUMNS": "200"}
    environment.pop("NO_COLOR", None)
    if not colour:
        environment["NO_COLOR"] = "1"
    process = subprocess.Popen(umdev.command("plugins", "--no-load"), env=environment, stdout=slave)
    os.close(slave)
    drawn = b""
    try:
        while part := os.read(master, 65536):
            drawn += part
    except OSError:  # EIO: the other end is closed
        pass
    finally:
        os.close(master)
        process.wait(30)
    assert b"loopback" in drawn
    assert (b"\x1b[3" in drawn) is False
    assert (b"\x1b[1m" in drawn) is True  # bold headers are no colour
