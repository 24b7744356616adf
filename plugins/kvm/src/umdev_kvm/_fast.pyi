from typing import Any

# cffi's handles are untyped by nature; `vm.py` wraps them.
ffi: Any
lib: Any
