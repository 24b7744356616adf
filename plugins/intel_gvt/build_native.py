"""Builds `umdev_intel_gvt._fast`: global table, aperture, unlisted registers, command scan in C, by cffi (abi3)."""

from pathlib import Path

from cffi import FFI

HERE = Path(__file__).parent
NATIVE = HERE / "src" / "umdev_intel_gvt" / "native"
INCLUDE = HERE / "include"  # links to the core's and softgpu's headers

ffi = FFI()
ffi.cdef((INCLUDE / "umdev_decls.h").read_text())
ffi.cdef((NATIVE / "gvt_decls.h").read_text())
ffi.set_source(
    "umdev_intel_gvt._fast",
    '#include "umdev.h"\n#include "gvt_decls.h"\n',
    sources=[str(path.relative_to(HERE)) for path in sorted(NATIVE.glob("*.c"))],
    include_dirs=["include", "src/umdev_intel_gvt/native"],
    depends=[str(path) for folder in (INCLUDE, NATIVE) for path in sorted(folder.glob("*.h"))],
    extra_compile_args=["-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror", "-Wno-unused-parameter"],
)

if __name__ == "__main__":
    ffi.compile(verbose=True)
