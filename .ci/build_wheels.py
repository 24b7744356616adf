"""Builds a wheel of every workspace member from a clean copy of the sources.

usage: build_wheels.py FOLDER    (emptied first; must be called from the root of the checkout)

The copy is what makes the wheels honest: setuptools keeps a `build/` folder beside the sources, and with it modules
that were deleted since and objects whose headers have changed.
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

SOURCES = ("core", "cli", "testkit", "plugins", "examples")
LEFTOVERS = shutil.ignore_patterns("build", "dist", "*.egg-info", "*.so", "*.o", "__pycache__", ".*")

wheels = Path(sys.argv[1]).resolve()
shutil.rmtree(wheels, ignore_errors=True)
with tempfile.TemporaryDirectory(prefix="umdev-wheels-") as folder:
    copy = Path(folder)
    shutil.copy("pyproject.toml", copy)
    for source in SOURCES:
        shutil.copytree(source, copy / source, symlinks=True, ignore=LEFTOVERS)
    build = subprocess.run(
        ["uv", "build", "--wheel", "--all-packages", "--out-dir", str(wheels)],
        cwd=copy,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
print(build.stdout if build.returncode else "\n".join(sorted(wheel.name for wheel in wheels.glob("*.whl"))))
sys.exit(build.returncode)
