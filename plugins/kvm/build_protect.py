"""Builds `umdev_kvm._protect`: what the protector of a VM does while a store waits, by cffi (abi3)."""

from pathlib import Path

from cffi import FFI

HERE = Path(__file__).parent
NATIVE = HERE / "src" / "umdev_kvm" / "native" / "protect"

ffi = FFI()
ffi.cdef((NATIVE / "remote_decls.h").read_text())
ffi.set_source(
    "umdev_kvm._protect",
    '#include "remote_decls.h"\n',
    sources=[str(path.relative_to(HERE)) for path in sorted(NATIVE.glob("*.c"))],
    include_dirs=["src/umdev_kvm/native/protect"],
    depends=[str(path) for path in sorted(NATIVE.glob("*.h"))],
    extra_compile_args=["-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror", "-pthread"],
    extra_link_args=["-pthread"],
)

if __name__ == "__main__":
    ffi.compile(verbose=True)
