from typing import Any

# cffi's handles are untyped by nature; `native.py` wraps them.
ffi: Any
lib: Any
