"""Builds `umdev_vfio_user._fast`: the message loop in C, by cffi (abi3)."""

from pathlib import Path

from cffi import FFI

HERE = Path(__file__).parent
NATIVE = HERE / "src" / "umdev_vfio_user" / "native"
INCLUDE = HERE / "include"  # links to the core's headers

ffi = FFI()
ffi.cdef((INCLUDE / "umdev_decls.h").read_text())
ffi.cdef((NATIVE / "link_decls.h").read_text())
ffi.set_source(
    "umdev_vfio_user._fast",
    '#include "umdev.h"\n#include "link_decls.h"\n',
    sources=[str(path.relative_to(HERE)) for path in sorted(NATIVE.glob("*.c"))],
    include_dirs=["include", "src/umdev_vfio_user/native"],
    depends=[str(path) for folder in (INCLUDE, NATIVE) for path in sorted(folder.glob("*.h"))],
    # Calls within the module go straight: after a switch from the client's process each line that is touched costs.
    extra_compile_args=[
        *("-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror", "-Wno-unused-parameter", "-pthread"),
        *("-fvisibility=hidden", "-fno-plt", "-flto"),
    ],
    extra_link_args=["-pthread", "-flto", "-O2"],
)

if __name__ == "__main__":
    ffi.compile(verbose=True)
