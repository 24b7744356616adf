"""A mediated Intel GPU: GVT-g types, each of which Linux's own i915 drives.

`parent` is what the entry point names.
"""

from .parent import IntelGpu

__all__ = ["IntelGpu", "parent"]

parent = IntelGpu()
