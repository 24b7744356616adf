"""Discovery: metadata only, by name, conflicts and failures named."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from umdev.errors import PluginError
from umdev.plugins import Group, load

if TYPE_CHECKING:
    from .conftest import Site

GOOD_BUS = """
    from umdev.hookspecs import hookimpl

    class Bus:
        @hookimpl
        def umdev_attached(self, attachment): ...

    bus = Bus()
"""


def failure(call: str) -> str:
    return f"""
        from umdev.plugins import *
        try:
            {call}
        except Exception as error:
            print(type(error).__name__, "|", error)
        else:
            print("no error")
    """


def test_listing_reads_metadata_and_imports_nothing(site: Site) -> None:
    site.install("umdev-tap", {"umdev.buses": {"tap": "tap_bus:bus"}}, version="2.5", tap_bus=GOOD_BUS)
    out = site.run(
        """
        import sys
        from umdev.plugins import Group, installed
        (tap,) = [info for info in installed(Group.BUSES) if info.name == "tap"]
        print(tap.group.value, tap.name, tap.distribution, tap.version, tap.target, tap.error, tap.label, sep="|")
        print(sorted({"tap_bus", "stevedore", "pluggy", "rich", "click"} & set(sys.modules)))
        """,
    )
    assert out.splitlines() == [
        "umdev.buses|tap|umdev-tap|2.5|tap_bus:bus|None|buses/tap (umdev-tap 2.5)",
        "[]",
    ]


def test_the_managers_listing_imports_no_plugin(site: Site) -> None:
    site.install("umdev-tap", {"umdev.buses": {"tap": "tap_bus:bus"}}, tap_bus=GOOD_BUS)
    out = site.run(
        """
        import sys
        from umdev.plugins import plugins
        assert "tap" in [info.name for info in plugins().buses()]
        plugins().parents(), plugins().hypervisors(), plugins().addons()
        print("tap_bus" in sys.modules, plugins() is plugins())
        """,
    )
    assert out.split() == ["False", "True"]


def test_load_gives_the_named_object(site: Site) -> None:
    site.install("umdev-tap", {"umdev.buses": {"tap": "tap_bus:bus"}}, tap_bus=GOOD_BUS)
    out = site.run("from umdev.plugins import *; print(type(load(Group.BUSES, 'tap')).__name__)")
    assert out.split() == ["Bus"]


def test_two_distributions_with_one_name_conflict_and_both_are_named(site: Site) -> None:
    site.install("umdev-tap", {"umdev.buses": {"tap": "tap_bus:bus"}}, tap_bus=GOOD_BUS)
    site.install("other-tap", {"umdev.buses": {"tap": "other:bus"}}, version="3.1", other=GOOD_BUS)
    out = site.run(failure("load(Group.BUSES, 'tap')"))
    assert out.startswith("PluginConflict | buses/tap is claimed by other-tap 3.1 and by umdev-tap 1.0")
    errors = site.run(
        "from umdev.plugins import *; print([i.error for i in installed(Group.BUSES) if i.name == 'tap'])"
    )
    assert errors.count("claimed by other-tap 3.1 and by umdev-tap 1.0") == 2


def test_a_conflict_is_solved_by_disabling_one_distribution(site: Site) -> None:
    site.install("umdev-tap", {"umdev.buses": {"tap": "tap_bus:bus"}}, tap_bus=GOOD_BUS)
    site.install("other-tap", {"umdev.buses": {"tap": "other:bus"}}, other=GOOD_BUS)
    program = "from umdev.plugins import *; print(type(load(Group.BUSES, 'tap')).__module__)"
    assert site.run(program, UMDEV_DISABLE_PLUGINS="umdev-t*").split() == ["other"]


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("import no_such_library", "ModuleNotFoundError: No module named 'no_such_library'"),
        ("assert False, 'not here'", "AssertionError: not here"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("pass", "AttributeError: "),
    ],
)
def test_a_failing_import_names_the_distribution_and_others_keep_working(site: Site, source: str, reason: str) -> None:
    site.install("umdev-broken", {"umdev.buses": {"broken": "broken_bus:bus"}}, version="0.9", broken_bus=source)
    site.install("umdev-tap", {"umdev.buses": {"tap": "tap_bus:bus"}}, tap_bus=GOOD_BUS)
    out = site.run(
        """
        from umdev.errors import PluginError
        from umdev.plugins import plugins
        try:
            plugins().load_bus("broken")
        except PluginError as error:
            print(error)
            assert error.__cause__ is not None
            assert error.hook == "import"
        (broken,) = [info for info in plugins().buses() if info.name == "broken"]
        print(broken.error)
        print(type(plugins().load_bus("tap")).__name__)
        """,
    )
    raised, listed, other = out.splitlines()
    assert raised.startswith(f"plugin buses/broken (umdev-broken 0.9) failed in import: {reason}")
    assert listed == raised
    assert other == "Bus"


def test_an_unknown_name_says_what_there_is(site: Site) -> None:
    site.install("umdev-tap", {"umdev.buses": {"tap": "tap_bus:bus"}}, tap_bus=GOOD_BUS)
    out = site.run(failure("load(Group.BUSES, 'tep')"), UMDEV_DISABLE_PLUGINS="umdev-[!t]*")
    assert out.strip() == "NotFound | no plugin 'tep' in umdev.buses; there are: loopback, tap"


@pytest.mark.parametrize("entry", ["first=firstling:thing", "buses/first=firstling:thing"])
def test_a_file_of_the_current_folder_that_is_taken_for_a_module(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, entry: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("UMDEV_PLUGINS", entry)
    group = Group.BUSES if "/" in entry else Group.PARENTS
    with pytest.raises(PluginError, match=r"No module named 'firstling'$"):
        load(group, "first")
    (tmp_path / "firstling.py").write_text("thing = 'found'\n")
    advice = entry.replace("firstling", "./firstling.py")
    with pytest.raises(PluginError, match=rf"; it is a file here: write {advice}$"):
        load(group, "first")
    monkeypatch.setenv("UMDEV_PLUGINS", advice)
    assert load(group, "first") == "found"


def test_environment_adds_a_parent_a_bus_and_a_file(site: Site) -> None:
    (site.folder / "mine.py").write_text("thing = 'a file'\n")
    (site.folder / "away.py").write_text("thing = 'a module'\n")
    out = site.run(
        """
        import sys
        from umdev.plugins import *
        print([(i.name, i.source, i.target) for i in installed(Group.PARENTS) if i.name == "filed"])
        assert "away" not in sys.modules
        print(load(Group.PARENTS, "filed"), load(Group.BUSES, "moduled"), sep="|")
        """,
        UMDEV_PLUGINS="filed=./mine.py:thing, buses/moduled=away:thing",
    )
    assert out.splitlines() == ["[('filed', 'UMDEV_PLUGINS', './mine.py:thing')]", "a file|a module"]


@pytest.mark.parametrize("entry", ["name", "name=module", "=module:object", "/n=m:o", "n=:o", "n=m:"])
def test_a_malformed_entry_is_named(site: Site, entry: str) -> None:
    out = site.run(failure("installed(Group.PARENTS)"), UMDEV_PLUGINS=entry)
    assert out.startswith("InvalidArgument | UMDEV_PLUGINS: ")
    assert repr(entry) in out


def test_an_unknown_group_is_named(site: Site) -> None:
    out = site.run(failure("installed(Group.PARENTS)"), UMDEV_PLUGINS="busses/tap=tap_bus:bus")
    assert out.startswith("InvalidArgument | UMDEV_PLUGINS: no group 'busses'; there are: parents, buses")


def test_environment_and_a_distribution_may_conflict_too(site: Site) -> None:
    site.install("umdev-tap", {"umdev.buses": {"tap": "tap_bus:bus"}}, tap_bus=GOOD_BUS)
    out = site.run(failure("load(Group.BUSES, 'tap')"), UMDEV_PLUGINS="buses/tap=tap_bus:bus")
    assert "claimed by UMDEV_PLUGINS and by umdev-tap 1.0" in out


@pytest.mark.parametrize("pattern", ["tap", "t*", "buses/tap", "umdev-tap", "x,ta?"])
def test_disabling_by_name_group_or_distribution(site: Site, pattern: str) -> None:
    site.install("umdev-tap", {"umdev.buses": {"tap": "tap_bus:bus"}}, tap_bus=GOOD_BUS)
    program = "from umdev.plugins import *; print([i.name for i in installed(Group.BUSES)])"
    assert "'tap'" in site.run(program)
    assert "'tap'" not in site.run(program, UMDEV_DISABLE_PLUGINS=pattern)


def test_a_new_entry_point_of_an_installed_distribution_is_seen_at_once(site: Site) -> None:
    site.install("umdev-tap", {"umdev.buses": {"tap": "tap_bus:bus"}}, tap_bus=GOOD_BUS)
    program = "from umdev.plugins import *; print(load(Group.BUSES, 'tap2') is load(Group.BUSES, 'tap'))"
    assert site.attempt(program).returncode != 0
    points = site.folder / "umdev_tap-1.0.dist-info" / "entry_points.txt"
    points.write_text("[umdev.buses]\ntap = tap_bus:bus\ntap2 = tap_bus:bus\n")
    assert site.run(program).split() == ["True"]


def test_only_discovery_imports_stevedore_and_only_the_manager_imports_pluggy() -> None:
    import umdev

    users: dict[str, list[str]] = {"stevedore": [], "pluggy": []}
    root = Path(umdev.__file__).parent
    for path in sorted(root.rglob("*.py")):
        for library, found in users.items():
            if f"import {library}" in path.read_text() or f"from {library}" in path.read_text():
                found.append(str(path.relative_to(root)))
    assert users == {"stevedore": ["plugins/discovery.py"], "pluggy": ["hookspecs.py", "plugins/manager.py"]}
