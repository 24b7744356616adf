"""Builds `umdev_kvm._fast`: the loops of virtual processors in C, by cffi (abi3)."""

from pathlib import Path

from cffi import FFI

HERE = Path(__file__).parent
NATIVE = HERE / "src" / "umdev_kvm" / "native"
INCLUDE = HERE / "include"  # links to the core's headers

ffi = FFI()
ffi.cdef((INCLUDE / "umdev_decls.h").read_text())
ffi.cdef((NATIVE / "kvm_decls.h").read_text())
ffi.cdef((NATIVE / "emulate_decls.h").read_text())
ffi.cdef('extern "Python" int umdev_kvm_store_told(void *, uint64_t, uint64_t, uint32_t);')
ffi.set_source(
    "umdev_kvm._fast",
    '#include "umdev.h"\n#include "kvm_decls.h"\n#include "emulate_decls.h"\n',
    sources=[str(path.relative_to(HERE)) for path in sorted(NATIVE.glob("*.c"))],
    include_dirs=["include", "src/umdev_kvm/native"],
    depends=[str(path) for folder in (INCLUDE, NATIVE) for path in sorted(folder.glob("*.h"))],
    # Calls within the module go straight: after an exit of the guest each page that is touched costs.
    extra_compile_args=[
        *("-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror", "-Wno-unused-parameter", "-pthread"),
        *("-fvisibility=hidden", "-fno-plt", "-flto"),
    ],
    extra_link_args=["-pthread", "-flto", "-O2"],
)

if __name__ == "__main__":
    ffi.compile(verbose=True)
