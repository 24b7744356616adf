"""The preload library as an extension that setuptools builds: a shared object with no C library and no Python in it."""

from setuptools import Extension

SOURCE = "src/umdev_kvm/native/preload/preload.c"


def extension(*, abi3: bool) -> Extension:
    """It has no module in it; being an extension, it is built, installed and put into wheels with the others."""
    return Extension(
        "umdev_kvm._preload",
        [SOURCE],
        py_limited_api=abi3,
        extra_compile_args=[
            "-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror", "-ffreestanding",
            # It runs before the C library does, so nothing of a compiler's runtime may be called.
            "-fno-stack-protector", "-fno-sanitize=all", "-fno-tree-loop-distribute-patterns", "-U_FORTIFY_SOURCE",
        ],
        extra_link_args=["-nostdlib", "-Wl,-z,noexecstack"],
    )  # fmt: skip
