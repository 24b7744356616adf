import sysconfig

from setuptools import setup

# One abi3 wheel serves every interpreter from 3.11 on; free-threaded builds have no limited API.
abi3 = not sysconfig.get_config_var("Py_GIL_DISABLED")
setup(
    cffi_modules=["build_native.py:ffi"],
    options={"bdist_wheel": {"py_limited_api": "cp311"}} if abi3 else {},
)
