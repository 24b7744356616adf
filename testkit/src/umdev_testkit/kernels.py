"""Debian's stock kernels for guests, and their modules in the order in which insmod wants them."""

from __future__ import annotations

import difflib
import lzma
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from umdev_testkit.debian import Bundle, bundle
from umdev_testkit.errors import ModuleMissing

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["KERNELS", "Kernel", "Module", "kernel"]

_KEEP = r"linux-(image|modules|binary)"  # not what a kernel's installation depends on: tools to make an initramfs
KERNELS = {
    "cloud": Bundle("linux-trixie-cloud", ("linux-image-cloud-amd64",), ("trixie", "trixie-backports"), keep=_KEEP),
    "full": Bundle("linux-trixie-full", ("linux-image-amd64",), ("trixie", "trixie-backports"), keep=_KEEP),
    "bookworm": Bundle("linux-bookworm-full", ("linux-image-amd64",), ("bookworm",), keep=_KEEP),
}
"""By name: 6.12 for virtual machines, 6.12 with every driver, 6.1 with every driver."""


@dataclass(frozen=True)
class Module:
    """One kernel module, ready for insmod: its name, its object file's bytes, its parameters."""

    name: str
    content: bytes
    parameters: str = ""


@dataclass(frozen=True)
class Kernel:
    """A kernel that was unpacked into `folder`."""

    folder: Path

    @cached_property
    def image(self) -> Path:
        """The bootable image."""
        return next((self.folder / "boot").glob("vmlinuz-*"))

    @property
    def release(self) -> str:
        """What `uname -r` says in the guest."""
        return self.image.name.removeprefix("vmlinuz-")

    def modules(self, wanted: Iterable[str]) -> list[Module]:
        """Return the wanted modules with all that they depend on, each after what it needs.

        An item is a module's name, followed by its parameters if there are any: `"kvm_amd nested=1"`. A module that
        is built into the kernel is left out, unless parameters are given: those it cannot take.

        Raises:
            ModuleMissing: this kernel has no such module, or it is built in and parameters are given.
        """
        ordered: dict[str, Module] = {}
        for item in wanted:
            name, _, parameters = item.partition(" ")
            self._add(_normal(name), parameters, ordered)
        return list(ordered.values())

    def _add(self, name: str, parameters: str, ordered: dict[str, Module]) -> None:
        if name in ordered:
            if parameters:
                ordered[name] = Module(name, ordered[name].content, parameters)
            return
        if name in self._builtin:
            if parameters:
                raise ModuleMissing(
                    f"{name} is built into kernel {self.release}: give its parameters on the kernel command line"
                    f" (append={f'{name}.{parameters}'!r})"
                )
            return
        if name not in self._files:
            near = difflib.get_close_matches(name, [*self._files, *self._builtin], n=3)
            hint = f"; near names: {', '.join(near)}" if near else ""
            raise ModuleMissing(
                f"kernel {self.release} has no module {name!r}{hint}; the 'full' kernel has more drivers than 'cloud'"
            )
        content = _content(self._files[name])
        for dependency in module_dependencies(content):
            self._add(_normal(dependency), "", ordered)
        ordered[name] = Module(name, content, parameters)

    @cached_property
    def _tree(self) -> Path:
        below = self.folder / "usr/lib/modules"
        return (below if below.is_dir() else self.folder / "lib/modules") / self.release

    @cached_property
    def _files(self) -> dict[str, Path]:
        return {_normal(path.name.split(".ko", 1)[0]): path for path in (self._tree / "kernel").rglob("*.ko*")}

    @cached_property
    def _builtin(self) -> frozenset[str]:
        lines = (self._tree / "modules.builtin").read_text().split()
        return frozenset(_normal(Path(line).name.removesuffix(".ko")) for line in lines)


def kernel(name: str) -> Kernel:
    """Return the named kernel of `KERNELS`, fetched first if the cache has none.

    Raises:
        ValueError: no such name.
        FetchError: it cannot be fetched.
    """
    if name not in KERNELS:
        raise ValueError(f"no kernel {name!r}: there are {', '.join(KERNELS)}")
    return Kernel(bundle(KERNELS[name]))


def module_dependencies(content: bytes) -> list[str]:
    """Return the names that a module's `.modinfo` section gives as `depends=` (zero-terminated strings)."""
    found = re.search(rb"(?:^|\0)depends=([^\0]*)\0", content)
    return [name for name in found[1].decode().split(",") if name] if found else []


def _normal(name: str) -> str:
    return name.replace("-", "_")


def _content(path: Path) -> bytes:
    content = path.read_bytes()
    return lzma.decompress(content) if path.suffix == ".xz" else content
