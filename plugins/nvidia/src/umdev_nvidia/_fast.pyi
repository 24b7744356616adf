from typing import Any

# cffi's handles are untyped by nature; `vram.py`, `windows.py` and `page_tables.py` wrap them.
ffi: Any
lib: Any
