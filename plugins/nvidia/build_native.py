"""Builds `umdev_nvidia._fast`: windows onto video memory, page-table entries, in C, by cffi (abi3)."""

from pathlib import Path

from cffi import FFI

HERE = Path(__file__).parent
NATIVE = HERE / "src" / "umdev_nvidia" / "native"
INCLUDE = HERE / "include"  # links to the core's and softgpu's headers

ffi = FFI()
ffi.cdef((INCLUDE / "umdev_decls.h").read_text())
ffi.cdef((INCLUDE / "softgpu_decls.h").read_text())
ffi.cdef((NATIVE / "nv_decls.h").read_text())
ffi.cdef('extern "Python" void nv_python_kicked(void *context, uint32_t channel);')
ffi.set_source(
    "umdev_nvidia._fast",
    '#include "softgpu.h"\n#include "nv_decls.h"\n',
    sources=[str(path.relative_to(HERE)) for path in sorted(NATIVE.glob("*.c"))],
    include_dirs=["include", "src/umdev_nvidia/native"],
    depends=[str(path) for folder in (INCLUDE, NATIVE) for path in sorted(folder.glob("*.h"))],
    extra_compile_args=["-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror", "-Wno-unused-parameter"],
)

if __name__ == "__main__":
    ffi.compile(verbose=True)
