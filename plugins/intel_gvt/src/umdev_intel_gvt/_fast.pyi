from typing import Any

# cffi's handles are untyped by nature; `ggtt.py` and `scan.py` wrap them.
ffi: Any
lib: Any
