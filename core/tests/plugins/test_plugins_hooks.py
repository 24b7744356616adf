"""The manager: what is refused, who is asked and in which order, who is blamed, who hears a broadcast."""

from __future__ import annotations

import inspect
import itertools
import threading
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from umdev import hookspecs
from umdev.errors import InvalidArgument, PluginError, ProtectorBusy, ServiceUnavailable, UmdevError
from umdev.hookspecs import hookimpl
from umdev.plugins import Group
from umdev.plugins.manager import Plugins
from umdev.services import Area, ProtectMode

if TYPE_CHECKING:
    from .conftest import Site

SPECS = {name: spec for name, spec in vars(hookspecs).items() if hasattr(spec, "umdev_spec")}
SERVICES = {name for name, spec in SPECS.items() if spec.umdev_spec["firstresult"]}
CATEGORY_A = {"umdev_passthrough_area", "umdev_trap_region", "umdev_connect_interrupts"}
AREA = Area(0, 0, 4096)  # type: ignore[arg-type]
ATTACHED = SimpleNamespace(bus="tap", hypervisor="vmm")


class Bound:
    """A bound service."""

    def __init__(self, mechanism: str) -> None:
        self.mechanism = mechanism
        self.closed = 0

    def close(self) -> None:
        self.closed += 1


def plugin(**hooks: Any) -> object:
    """A plugin of marked functions."""
    return type("Plugin", (), {name: staticmethod(hookimpl(function)) for name, function in hooks.items()})()


def made(*plugins: tuple[Group, str, object], fallback: object | None = None) -> Plugins:
    """Plugins without add-ons of this machine's installation."""
    found = Plugins(fallback or object())
    found._addons_loaded = True
    for group, name, registered in plugins:
        found.register(group, name, registered, f"umdev-{name} 1.0")
    return found


ASK = {
    "umdev_passthrough_area": lambda plugins: plugins.passthrough(ATTACHED, AREA),
    "umdev_trap_region": lambda plugins: plugins.trap(ATTACHED, 0),
    "umdev_connect_interrupts": lambda plugins: plugins.interrupts(ATTACHED, 4),
    "umdev_map_memory": lambda plugins: plugins.map_memory(ATTACHED),
    "umdev_pin_pages": lambda plugins: plugins.pinner(ATTACHED),
    "umdev_protect_pages": lambda plugins: plugins.protector(ATTACHED, ProtectMode.TRAP),
    "umdev_translate": lambda plugins: plugins.translator(ATTACHED),
}
"""Service hook -> the typed call that asks it."""

TOLD = {
    "umdev_device_created": {"device": "a device"},
    "umdev_attached": {"attachment": "an attachment"},
    "umdev_device_reset": {"device": "a device", "kind": "FLR"},
    "umdev_memory_changed": {"attachment": "an attachment"},
    "umdev_detached": {"attachment": "an attachment"},
    "umdev_device_closed": {"device": "a device"},
}
"""Broadcast -> arguments."""


class TestEveryHook:
    """The contract, enumerated: a new hook without a document or a test fails here."""

    def test_each_is_documented_and_exercised(self) -> None:
        assert set(ASK) == SERVICES
        assert set(TOLD) == set(SPECS) - SERVICES
        for name, spec in SPECS.items():
            assert name.startswith("umdev_")
            assert spec.__doc__, f"{name} has no docstring"
            assert all(p.annotation is not inspect.Parameter.empty for p in inspect.signature(spec).parameters.values())

    @pytest.mark.parametrize("hook", sorted(ASK))
    def test_a_service_is_answered_with_its_arguments(self, hook: str) -> None:
        given: dict[str, Any] = {}
        names = list(inspect.signature(SPECS[hook]).parameters)
        scope: dict[str, Any] = {"given": given, "Bound": Bound}
        exec(f"def answer({', '.join(names)}):\n given.update(locals())\n return Bound('by the bus')", scope)
        assert (
            ASK[hook](made((Group.BUSES, "tap", plugin(**{hook: scope["answer"]})))).mechanism == "by the bus"
            if (hook in CATEGORY_A)
            else True
        )
        both = made(
            (Group.BUSES, "tap", plugin(**{hook: scope["answer"]})),
            (Group.HYPERVISORS, "vmm", plugin(umdev_attached=lambda: None)),
        )
        assert ASK[hook](both).mechanism == "by the bus"
        assert given["attachment"] is ATTACHED
        assert set(names) <= set(given)

    @pytest.mark.parametrize("hook", sorted(TOLD))
    def test_a_broadcast_brings_its_arguments(self, hook: str) -> None:
        given: dict[str, Any] = {}
        names = list(inspect.signature(SPECS[hook]).parameters)
        scope: dict[str, Any] = {"given": given}
        exec(f"def hear({', '.join(names)}):\n given.update({', '.join(f'{n}={n}' for n in names)})", scope)
        made((Group.ADDONS, "ear", plugin(**{hook: scope["hear"]}))).tell(hook, **TOLD[hook])
        assert given == TOLD[hook]

    @pytest.mark.parametrize("hook", sorted(ASK))
    def test_an_addon_wraps_it_and_sees_the_answer(self, hook: str) -> None:
        seen: list[str] = []

        def watch() -> Any:
            answer = yield
            seen.append(answer.mechanism)
            return answer

        tracer = type("Tracer", (), {hook: staticmethod(hookimpl(wrapper=True)(watch))})()
        found = made(
            (Group.BUSES, "tap", plugin(**{hook: lambda: Bound("bus")})),
            (Group.HYPERVISORS, "vmm", plugin(umdev_attached=lambda: None)),
            (Group.ADDONS, "tracer", tracer),
        )
        assert ASK[hook](found).mechanism == "bus"
        assert seen == ["bus"]


class TestOrder:
    """Fixed by category and name, never by what was registered first."""

    @pytest.mark.parametrize("hook", sorted(ASK))
    def test_of_asking(self, hook: str) -> None:
        wanted = ["bus", "fallback"] if hook in CATEGORY_A else ["hypervisor", "bus", "fallback"]
        entries = [
            (Group.BUSES, "tap", "bus"),
            (Group.BUSES, "another", "another bus"),
            (Group.HYPERVISORS, "vmm", "hypervisor"),
            (Group.HYPERVISORS, "avmm", "another hypervisor"),
        ]
        for order in itertools.permutations(entries):
            asked: list[str] = []
            found = made(
                *(
                    (group, name, plugin(**{hook: lambda text=text, asked=asked: asked.append(text)}))
                    for group, name, text in order
                ),
                fallback=plugin(**{hook: lambda asked=asked: asked.append("fallback")}),
            )
            with pytest.raises(ServiceUnavailable):
                ASK[hook](found)
            assert asked == wanted

    def test_of_telling_and_of_wrapping(self) -> None:
        class Wrapper:
            def __init__(self, name: str, log: list[str]) -> None:
                self.name, self.log = name, log

            @hookimpl(wrapper=True)
            def umdev_trap_region(self) -> Any:
                self.log.append(self.name)
                return (yield)

            @hookimpl
            def umdev_attached(self) -> None:
                self.log.append(self.name)

        for order in itertools.permutations(["a", "b", "c"]):
            log: list[str] = []
            found = made(
                *((Group.ADDONS, name, Wrapper(name, log)) for name in order),
                (
                    Group.BUSES,
                    "tap",
                    plugin(umdev_trap_region=lambda: Bound("x"), umdev_attached=lambda log=log: log.append("bus")),
                ),
            )
            found.trap(ATTACHED, 0)
            assert log == ["c", "b", "a"]
            log.clear()
            found.tell("umdev_attached", attachment=ATTACHED)
            assert log == ["bus", "a", "b", "c"]

    def test_an_attachment_without_a_hypervisor_asks_none(self) -> None:
        found = made((Group.BUSES, "tap", plugin(umdev_translate=lambda: Bound("bus"))))
        assert found.translator(SimpleNamespace(bus="tap", hypervisor=None)).mechanism == "bus"


class TestRefusedAtRegistration:
    """Plugin, hook and reason are named, and what was registered before still works."""

    @pytest.mark.parametrize(
        ("group", "name", "hooks", "hook", "reason"),
        [
            (Group.BUSES, "umdev_trap_regoin", hookimpl, "umdev_trap_regoin", "did you mean umdev_trap_region?"),
            (Group.BUSES, "trap_region", hookimpl, "trap_region", "did you mean umdev_trap_region?"),
            (Group.BUSES, "umdev_zzzzz", hookimpl, "umdev_zzzzz", "there are: umdev_passthrough_area,"),
            (Group.BUSES, "umdev_odd", hookimpl(optionalhook=True), "umdev_odd", "no hook umdev_odd"),
            (Group.BUSES, "mine", hookimpl(specname="umdev_trap_regio"), "mine", "did you mean umdev_trap_region?"),
            (Group.BUSES, "umdev_trap_region", lambda f: f, "umdev_trap_region", "not marked as a hook"),
            (Group.BUSES, "umdev_trap_regoin", lambda f: f, "umdev_trap_regoin", "did you mean umdev_trap_region?"),
            (
                Group.BUSES,
                "umdev_trap_region",
                hookimpl(tryfirst=True),
                "umdev_trap_region",
                "order of asking is fixed",
            ),
            (Group.BUSES, "umdev_trap_region", hookimpl(trylast=True), "umdev_trap_region", "order of asking is fixed"),
            (Group.BUSES, "umdev_trap_region", hookimpl(wrapper=True), "umdev_trap_region", "only add-ons wrap"),
            (Group.ADDONS, "umdev_trap_region", hookimpl, "umdev_trap_region", "never answers a service hook"),
            (Group.ADDONS, "umdev_trap_region", hookimpl(hookwrapper=True), "umdev_trap_region", "use wrapper=True"),
            (Group.ADDONS, "umdev_attached", hookimpl(wrapper=True), "umdev_attached", "a broadcast has no answer"),
            (Group.HYPERVISORS, "something", lambda f: f, "register", "implements no umdev hook"),
        ],
    )
    def test_mistake(self, group: Group, name: str, hooks: Any, hook: str, reason: str) -> None:
        def function(self) -> Any:
            yield

        broken = type("Broken", (), {name: hooks(function)})()
        found = made((Group.BUSES, "tap", plugin(umdev_trap_region=lambda: Bound("still here"))))
        with pytest.raises(PluginError) as caught:
            found.register(group, "broken", broken, "umdev-broken 0.1")
        assert f"{group.short}/broken (umdev-broken 0.1)" in str(caught.value)
        assert caught.value.hook == hook
        assert reason in str(caught.value)
        assert found.trap(ATTACHED, 0).mechanism == "still here"
        found.register(group, "broken", plugin(umdev_device_created=lambda: None))  # the name is free again

    def test_marker_of_another_project(self) -> None:
        import pluggy

        broken = type("Broken", (), {"umdev_attached": pluggy.HookimplMarker("other")(lambda self: None)})()
        with pytest.raises(
            PluginError, match=r"umdev_attached: TypeError: it is not marked .* by @umdev.hookspecs.hookimpl"
        ):
            made().register(Group.BUSES, "broken", broken)

    def test_an_argument_that_the_hook_does_not_have(self) -> None:
        broken = plugin(umdev_trap_region=lambda attachment, regoin: None)
        with pytest.raises(PluginError, match=r"(?s)buses/broken .*umdev_trap_region.*regoin"):
            made().register(Group.BUSES, "broken", broken)

    def test_properties_are_not_run(self) -> None:
        class Plugin:
            @property
            def umdev_trap_region(self) -> None:
                raise AssertionError("ran")

            @hookimpl
            def umdev_attached(self) -> None: ...

        made().register(Group.BUSES, "tap", Plugin())

    def test_taken_name_wrong_group_same_object_unhashable(self) -> None:
        bus = plugin(umdev_attached=lambda: None)
        found = made((Group.BUSES, "tap", bus))
        with pytest.raises(InvalidArgument, match="buses/tap is registered already"):
            found.register(Group.BUSES, "tap", plugin(umdev_attached=lambda: None))
        with pytest.raises(InvalidArgument, match=r"umdev\.parents have no hooks"):
            found.register(Group.PARENTS, "tap", bus)
        with pytest.raises(PluginError, match="hypervisors/tap"):
            found.register(Group.HYPERVISORS, "tap", bus)
        with pytest.raises(PluginError, match="hashable"):
            found.register(Group.BUSES, "other", type("P", (), {"__eq__": lambda self, other: True})())


class TestDeclining:
    """Reasons are collected from everyone that was asked."""

    def test_reasons_name_their_plugin(self) -> None:
        found = made(
            (Group.BUSES, "tap", plugin(umdev_protect_pages=lambda decline: decline("no page tables"))),
            (Group.HYPERVISORS, "vmm", plugin(umdev_protect_pages=lambda decline: decline("no userfaultfd"))),
            fallback=plugin(umdev_protect_pages=lambda mode, decline: decline(f"not {mode.value}")),
        )
        with pytest.raises(ServiceUnavailable) as caught:
            found.protector(ATTACHED, ProtectMode.TRAP)
        assert caught.value.service == "protect (trap)"
        assert caught.value.reasons == (
            ("hypervisors/vmm (umdev-vmm 1.0)", "no userfaultfd"),
            ("buses/tap (umdev-tap 1.0)", "no page tables"),
            ("core/fallback", "not trap"),
        )

    def test_nobody_knows(self) -> None:
        found = made((Group.BUSES, "tap", plugin(umdev_attached=lambda: None)))
        with pytest.raises(ServiceUnavailable, match="no installed plugin knows") as caught:
            found.trap(ATTACHED, 0)
        assert caught.value.reasons == ()


class Wrap:
    """An add-on around `umdev_trap_region`, made of what it does before and after."""

    def __init__(self, after: Any = lambda answer, decline: answer, before: Any = lambda: None) -> None:
        self.before, self.after = before, after

    @hookimpl(wrapper=True)
    def umdev_trap_region(self, decline: Any) -> Any:
        self.before()
        answer = yield
        return self.after(answer, decline)


def explode(*_arguments: Any) -> Any:
    raise RuntimeError("boom")


class TestAddons:
    """They wrap, observe and veto; they never answer."""

    def test_an_answer_made_by_an_addon_is_refused(self) -> None:
        found = made(
            (Group.BUSES, "tap", plugin(umdev_trap_region=lambda decline: decline("no"))),
            (Group.ADDONS, "eager", Wrap(after=lambda answer, decline: Bound("mine"))),
        )
        with pytest.raises(PluginError, match="may only wrap it") as caught:
            found.trap(ATTACHED, 0)
        assert caught.value.plugin == "addons/eager (umdev-eager 1.0)"

    def test_a_veto_closes_the_service_and_is_a_reason(self) -> None:
        service = Bound("bus")
        found = made(
            (Group.BUSES, "tap", plugin(umdev_trap_region=lambda: service)),
            (Group.ADDONS, "policy", Wrap(after=lambda answer, decline: decline("not on Sundays"))),
        )
        with pytest.raises(ServiceUnavailable, match="an add-on: not on Sundays"):
            found.trap(ATTACHED, 0)
        assert service.closed == 1

    @pytest.mark.parametrize("where", [{"after": explode}, {"before": explode}])
    def test_blame_goes_to_the_wrapper_that_raised(self, where: dict[str, Any]) -> None:
        service = Bound("bus")
        found = made(
            (Group.BUSES, "tap", plugin(umdev_trap_region=lambda: service)),
            (Group.ADDONS, "a", Wrap()),
            (Group.ADDONS, "b", Wrap(**where)),
            (Group.ADDONS, "c", Wrap()),
        )
        with pytest.raises(PluginError, match="RuntimeError: boom") as caught:
            found.trap(ATTACHED, 0)
        assert caught.value.plugin == "addons/b (umdev-b 1.0)"
        assert service.closed == ("after" in where)

    def test_a_wrapper_may_replace_the_answer_by_one_around_it(self) -> None:
        found = made(
            (Group.BUSES, "tap", plugin(umdev_trap_region=lambda: Bound("bus"))),
            (Group.ADDONS, "tracer", Wrap(after=lambda answer, decline: Bound(f"traced {answer.mechanism}"))),
        )
        assert found.trap(ATTACHED, 0).mechanism == "traced bus"


class TestBlame:
    """Whatever a plugin raises arrives with the plugin's name."""

    def test_any_exception_becomes_a_plugin_error(self) -> None:
        found = made((Group.BUSES, "tap", plugin(umdev_trap_region=explode)))
        with pytest.raises(PluginError) as caught:
            found.trap(ATTACHED, 0)
        assert str(caught.value) == "plugin buses/tap (umdev-tap 1.0) failed in umdev_trap_region: RuntimeError: boom"
        assert isinstance(caught.value.__cause__, RuntimeError)

    def test_named_errors_pass_with_a_note(self) -> None:
        def busy() -> Any:
            raise ProtectorBusy("post-copy")

        found = made(
            (Group.BUSES, "tap", plugin(umdev_attached=lambda: None)),
            (Group.HYPERVISORS, "vmm", plugin(umdev_protect_pages=busy)),
        )
        with pytest.raises(ProtectorBusy) as caught:
            found.protector(ATTACHED, ProtectMode.TRAP)
        assert caught.value.__notes__ == ["raised by plugin hypervisors/vmm (umdev-vmm 1.0) in umdev_protect_pages"]

    @pytest.mark.parametrize(
        "answer", [object(), SimpleNamespace(mechanism="m"), SimpleNamespace(mechanism=3, close=1)]
    )
    def test_an_answer_that_is_no_service(self, answer: object) -> None:
        found = made((Group.BUSES, "tap", plugin(umdev_trap_region=lambda: answer)))
        with pytest.raises(PluginError, match=r"buses/tap .* is no bound service"):
            found.trap(ATTACHED, 0)


class TestBroadcasts:
    """Everyone hears them, whoever fails."""

    def test_failures_come_together_after_all_heard(self) -> None:
        heard: list[str] = []

        def refuse() -> None:
            raise UmdevError("named")

        found = made(
            (Group.BUSES, "tap", plugin(umdev_attached=explode)),
            (Group.BUSES, "deaf", plugin(umdev_trap_region=lambda: None)),
            (Group.HYPERVISORS, "vmm", plugin(umdev_attached=refuse)),
            (Group.ADDONS, "ear", plugin(umdev_attached=lambda: heard.append("ear"))),
            fallback=plugin(umdev_attached=lambda: heard.append("fallback")),
        )
        with pytest.raises(ExceptionGroup, match=r"umdev_attached: 2 plugin\(s\) failed") as caught:
            found.tell("umdev_attached", attachment=ATTACHED)
        assert heard == ["fallback", "ear"]
        assert [str(failure) for failure in caught.value.exceptions] == [
            "plugin buses/tap (umdev-tap 1.0) failed in umdev_attached: RuntimeError: boom",
            "plugin hypervisors/vmm (umdev-vmm 1.0) failed in umdev_attached: UmdevError: named",
        ]

    @pytest.mark.parametrize("hook", ["umdev_trap_region", "umdev_nothing", "attached"])
    def test_only_broadcasts_can_be_told(self, hook: str) -> None:
        with pytest.raises(InvalidArgument, match="there are: umdev_device_created"):
            made().tell(hook)


def test_registering_while_others_call(tmp_path: Any) -> None:
    found = made((Group.BUSES, "tap", plugin(umdev_trap_region=lambda: Bound("bus"))))
    stop, wrong = threading.Event(), []

    def call() -> None:
        while not stop.is_set():
            try:
                assert found.trap(ATTACHED, 0).mechanism == "bus"
            except BaseException as error:  # noqa: BLE001 - a thread hands on whatever went wrong
                wrong.append(error)
                return

    threads = [threading.Thread(target=call) for _ in range(2)]
    for thread in threads:
        thread.start()
    for number in range(40):
        found.register(Group.ADDONS, f"addon{number}", plugin(umdev_attached=lambda: None))
    stop.set()
    for thread in threads:
        thread.join()
    assert not wrong


ADDON = """
    from umdev.hookspecs import hookimpl

    class Addon:
        @hookimpl
        def umdev_device_created(self, device):
            print("heard", device)

    addon = Addon()
"""


def test_addons_are_loaded_by_the_first_broadcast_and_a_broken_one_is_logged(site: Site) -> None:
    site.install("umdev-ear", {"umdev.addons": {"ear": "ear:addon"}}, ear=ADDON)
    site.install("umdev-typo", {"umdev.addons": {"typo": "typo:addon"}}, typo=ADDON.replace("_created", "_create"))
    done = site.attempt(
        """
        import logging, sys
        logging.basicConfig(format="%(name)s %(levelname)s %(message)s")
        from umdev.plugins.manager import Plugins
        plugins = Plugins(fallback=type("Nothing", (), {})())
        plugins.addons()
        assert "ear" not in sys.modules
        plugins.tell("umdev_device_created", device="edu")
        print({info.name: info.error for info in plugins.addons()})
        """,
        UMDEV_DISABLE_PLUGINS="umdev-[!et]*",
    )
    assert done.returncode == 0, done.stderr
    reason = (
        "plugin addons/typo (umdev-typo 1.0) failed in umdev_device_create: "
        "TypeError: there is no hook umdev_device_create; did you mean umdev_device_created?"
    )
    assert done.stdout.splitlines() == ["heard edu", str({"ear": None, "typo": reason})]
    assert done.stderr.splitlines() == [f"umdev.plugins WARNING {reason}"]


def test_trace_of_hooks(site: Site) -> None:
    site.install("umdev-ear", {"umdev.addons": {"ear": "ear:addon"}}, ear=ADDON)
    program = """
        from umdev.plugins.manager import Plugins
        Plugins(fallback=type("Nothing", (), {})()).tell("umdev_device_created", device="edu")
    """
    off = site.attempt(program, UMDEV_DISABLE_PLUGINS="umdev-[!et]*", UMDEV_TRACE_HOOKS="0")
    on = site.attempt(program, UMDEV_DISABLE_PLUGINS="umdev-[!et]*", UMDEV_TRACE_HOOKS="1")
    assert off.stderr == ""
    assert on.stderr.startswith("umdev: umdev_device_created(device='edu') asks addons/ear\n")
    assert "umdev: umdev_device_created gave" in on.stderr
