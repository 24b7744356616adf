"""Builds `umdev_testkit._floors`: the bare-C floors of the bench and the loops that measure against them (abi3)."""

from pathlib import Path

from cffi import FFI

HERE = Path(__file__).parent
NATIVE = HERE / "src" / "umdev_testkit" / "bench" / "native"
INCLUDE = HERE / "include"  # links to the core's headers, so that an edited header rebuilds this module too

ffi = FFI()
ffi.cdef((INCLUDE / "umdev_decls.h").read_text())
ffi.cdef((NATIVE / "bench_decls.h").read_text())
ffi.set_source(
    "umdev_testkit._floors",
    '#include "umdev.h"\n#include "bench_decls.h"\n',
    sources=[str(path.relative_to(HERE)) for path in sorted(NATIVE.glob("*.c"))],
    include_dirs=["include", str(NATIVE.relative_to(HERE))],
    depends=[str(path) for folder in (INCLUDE, NATIVE) for path in sorted(folder.glob("*.h"))],
    # As in the plugins: a handler is entered straight.
    extra_compile_args=[
        *("-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror", "-Wno-unused-parameter"),
        *("-fvisibility=hidden", "-fno-plt", "-flto"),
    ],
    extra_link_args=["-flto", "-O2"],
)

if __name__ == "__main__":
    ffi.compile(verbose=True)
