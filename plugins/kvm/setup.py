import sys
import sysconfig
from pathlib import Path

from setuptools import setup

sys.path.insert(0, str(Path(__file__).parent))  # not there in an isolated build

from build_preload import extension

# One abi3 wheel serves every interpreter from 3.11 on; free-threaded builds have no limited API.
abi3 = not sysconfig.get_config_var("Py_GIL_DISABLED")
setup(
    cffi_modules=["build_native.py:ffi", "build_protect.py:ffi"],
    ext_modules=[extension(abi3=bool(abi3))],
    options={"bdist_wheel": {"py_limited_api": "cp311"}} if abi3 else {},
)
