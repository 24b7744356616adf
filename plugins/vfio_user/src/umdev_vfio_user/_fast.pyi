from typing import Any

# cffi's handles are untyped by nature; `link.py` wraps them.
ffi: Any
lib: Any
