"""A copy of core and plugin with AddressSanitizer and UndefinedBehaviorSanitizer in their C modules."""

from __future__ import annotations

import runpy
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

PLUGIN = Path(__file__).parents[2]
CORE = PLUGIN.parents[1] / "core"
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-fno-omit-frame-pointer"]
FLAGS = ["-std=gnu11", "-O1", "-g", "-fPIC", "-shared", "-pthread", "-w"]


def runtime() -> list[str]:
    """The sanitizer libraries to preload, or an empty list where the compiler has none."""
    found = []
    for name in ("libasan.so", "libubsan.so"):
        said = subprocess.run(["gcc", f"-print-file-name={name}"], capture_output=True, text=True, check=True)
        path = Path(said.stdout.strip())
        if not path.is_absolute():
            return []
        found.append(str(path))
    return found


def build(folder: Path) -> None:
    """Put both packages into `folder`, ready for PYTHONPATH."""
    for member, package, module in ((CORE, "umdev", "_native"), (PLUGIN, "umdev_vfio_user", "_fast")):
        target = folder / package
        shutil.copytree(
            member / "src" / package, target, ignore=shutil.ignore_patterns("*.so", "__pycache__", f"{module}.c")
        )
        ffi = runpy.run_path(str(member / "build_native.py"))["ffi"]
        source = folder / f"{module}.c"
        ffi.emit_c_code(str(source))
        includes = [f"-I{sysconfig.get_path('include')}", f"-I{target / 'native'}"]
        includes.append(f"-I{CORE / 'src' / 'umdev' / 'include'}")
        sources = [str(path) for path in (source, *sorted((target / "native").rglob("*.c")))]
        output = target / f"{module}.abi3.so"
        subprocess.run(["gcc", *FLAGS, *SANITIZERS, *includes, *sources, "-o", str(output)], check=True)


if __name__ == "__main__":
    build(Path(sys.argv[1]))
