"""Modules come in the order in which insmod wants them."""

import lzma

import pytest
from umdev_testkit.errors import ModuleMissing
from umdev_testkit.kernels import Kernel, Module, kernel, module_dependencies


def info(*dependencies, before=b"\x7fELF junk\0license=GPL\0"):
    return before + b"depends=" + ",".join(dependencies).encode() + b"\0retpoline=Y\0intree=Y\0"


@pytest.fixture(params=["usr/lib/modules", "lib/modules"])
def small(tmp_path, request):
    tree = tmp_path / request.param / "1.2-test"
    (tree / "kernel/drivers").mkdir(parents=True)
    (tmp_path / "boot").mkdir()
    (tmp_path / "boot/vmlinuz-1.2-test").write_bytes(b"image")
    (tree / "modules.builtin").write_text("kernel/fs/ext4/ext4.ko\nkernel/drivers/8250_pci.ko\n")
    for name, needs in {"top": ["left", "right-hand"], "left": ["base"], "right-hand": ["base", "ext4"]}.items():
        (tree / f"kernel/drivers/{name}.ko.xz").write_bytes(lzma.compress(info(*needs)))
    (tree / "kernel/base.ko").write_bytes(info())
    return Kernel(tmp_path)


def names(modules):
    return [module.name for module in modules]


def test_dependencies_of_a_module():
    assert module_dependencies(info("a", "b-c")) == ["a", "b-c"]
    assert module_dependencies(info()) == []
    assert module_dependencies(b"\0notdepends=x\0") == []
    assert module_dependencies(b"depends=first\0") == ["first"]


def test_each_after_what_it_needs_and_once(small):
    assert names(small.modules(["top"])) == ["base", "left", "right_hand", "top"]
    assert names(small.modules(["left", "top", "base"])) == ["base", "left", "right_hand", "top"]
    assert small.modules(["base"]) == [Module("base", info())]
    assert small.release == "1.2-test"


def test_dash_and_underscore_are_one(small):
    assert names(small.modules(["right_hand"])) == names(small.modules(["right-hand"])) == ["base", "right_hand"]


def test_parameters_stay_with_their_module(small):
    modules = small.modules(["left a=1 b=2", "top"])
    assert {module.name: module.parameters for module in modules if module.parameters} == {"left": "a=1 b=2"}
    late = small.modules(["top", "base debug=1"])
    assert (late[0].name, late[0].parameters) == ("base", "debug=1")


def test_built_in_needs_no_loading(small):
    assert small.modules(["ext4", "8250_pci"]) == []
    with pytest.raises(ModuleMissing, match=r"append='8250_pci\.x=1'"):
        small.modules(["8250_pci x=1"])


def test_a_missing_module_names_near_ones(small):
    with pytest.raises(ModuleMissing, match=r"no module 'bass'; near names: base.*'full'"):
        small.modules(["bass"])


def test_an_unknown_kernel_names_those_that_there_are():
    with pytest.raises(ValueError, match="cloud, full, bookworm"):
        kernel("hurd")
