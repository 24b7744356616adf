from typing import Any

# cffi's handles are untyped by nature; `vm_protector_vm.py` wraps them.
ffi: Any
lib: Any
