"""A mediated NVIDIA Tesla M10 GPU: its vGPU types, each of which the open nouveau drives.

`parent` is what the entry point names.
"""

from .parent import TeslaM10

__all__ = ["TeslaM10", "parent"]

parent = TeslaM10()
