from typing import Any

# cffi's handles are untyped by nature; the modules beside this one wrap them.
ffi: Any
lib: Any
