"""Builds `umdev_xen._fast`: the loop of a domain's processors in C, by cffi (abi3). No header of Xen is needed."""

from pathlib import Path

from cffi import FFI

HERE = Path(__file__).parent
NATIVE = HERE / "src" / "umdev_xen" / "native"
INCLUDE = HERE / "include"  # links to the core's headers

ffi = FFI()
ffi.cdef((INCLUDE / "umdev_decls.h").read_text())
ffi.cdef((NATIVE / "xen_decls.h").read_text())
ffi.set_source(
    "umdev_xen._fast",
    '#include <stddef.h>\n#include "umdev.h"\n#include "xen_decls.h"\n',
    sources=[str(path.relative_to(HERE)) for path in sorted(NATIVE.glob("*.c"))],
    include_dirs=["include", "src/umdev_xen/native"],
    depends=[str(path) for folder in (INCLUDE, NATIVE) for path in sorted(folder.glob("*.h"))],
    extra_compile_args=[
        *("-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror", "-Wno-unused-parameter", "-pthread"),
        "-fvisibility=hidden",
    ],
    extra_link_args=["-pthread"],
)

if __name__ == "__main__":
    ffi.compile(verbose=True)
