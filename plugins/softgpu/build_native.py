"""Builds `umdev_softgpu._native`: memory port, page-table walker and blitter in C, by cffi (abi3)."""

from pathlib import Path

from cffi import FFI

HERE = Path(__file__).parent
SOURCE = HERE / "src" / "umdev_softgpu"
NATIVE = SOURCE / "native"
PUBLIC = SOURCE / "include"  # what a vendor's C includes
INCLUDE = HERE / "include"  # links to the core's headers

ffi = FFI()
ffi.cdef((INCLUDE / "umdev_decls.h").read_text())
ffi.cdef((PUBLIC / "softgpu_decls.h").read_text())
ffi.cdef((NATIVE / "functions.h").read_text())
ffi.cdef('extern "Python" void softgpu_wait_begins(void);')
ffi.cdef('extern "Python" void softgpu_wait_ends(void);')
ffi.set_source(
    "umdev_softgpu._native",
    '#include "softgpu.h"\n#include "functions.h"\n',
    sources=[str(path.relative_to(HERE)) for path in sorted(NATIVE.glob("*.c"))],
    include_dirs=["include", str(PUBLIC.relative_to(HERE)), str(NATIVE.relative_to(HERE))],
    depends=[str(path) for folder in (INCLUDE, PUBLIC, NATIVE) for path in sorted(folder.glob("*.h"))],
    # -O3: the raster kernels are plain loops that the compiler turns into vector code.
    extra_compile_args=["-std=gnu11", "-O3", "-Wall", "-Wextra", "-Werror", "-Wno-unused-parameter", "-pthread"],
    extra_link_args=["-pthread"],
)

if __name__ == "__main__":
    ffi.compile(verbose=True)
