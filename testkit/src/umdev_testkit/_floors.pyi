from typing import Any

# cffi's handles are untyped by nature; umdev_testkit.bench.native wraps them.
ffi: Any
lib: Any
