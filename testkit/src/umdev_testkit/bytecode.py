"""Python's bytecode, made on this machine for guests that see its files but can't write there.

A guest's processor is translated: what each of its programs would have to compile again costs more than what it is for.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import sysconfig
from importlib.util import cache_from_source
from pathlib import Path

__all__ = ["compile_packages"]

_COMPILE_TIME = 300.0  # seconds


def compile_packages() -> None:
    """Compile all that can be imported here and isn't Python's own, as many installers do; what is up to date stays.

    What can't be compiled or written is left to those that import it.
    """
    folders = [str(folder) for folder in _folders() if _incomplete(folder)]
    if folders:
        sys.stderr.write("umdev: compiling Python packages for the guest\n")
        sys.stderr.flush()
        command = [sys.executable, "-m", "compileall", "-qq", "-j", "0", *folders]
        with contextlib.suppress(subprocess.TimeoutExpired):
            subprocess.run(command, stdin=subprocess.DEVNULL, timeout=_COMPILE_TIME, check=False)


def _folders() -> list[Path]:
    """What is imported from, without Python's library, which has its bytecode, and without whole checkouts."""
    own = {Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib")}
    found = dict.fromkeys(Path(entry).resolve() for entry in sys.path if entry)
    return [path for path in found if path.is_dir() and path not in own and not (path / "pyproject.toml").exists()]


def _incomplete(folder: Path) -> bool:
    """Whether some file has no bytecode, or older one."""
    for source in folder.rglob("*.py"):
        compiled = Path(cache_from_source(str(source)))
        if not compiled.exists() or compiled.stat().st_mtime < source.stat().st_mtime:
            return True
    return False
