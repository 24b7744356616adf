from typing import Any

# cffi's handles are untyped by nature; each concept wraps its own in one module.
ffi: Any
lib: Any
