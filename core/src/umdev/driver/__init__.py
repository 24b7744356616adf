"""The driver's view of a function: for userspace drivers and tests, the same on every bus."""

from .bar_view import BarView, ProbedBar
from .config_view import ConfigView
from .dma_buffer import DmaBuffer
from .doorbell import DriverDoorbell
from .function import Function
from .interrupt_set import InterruptKind, InterruptSet
from .region import MappedArea, RegionInfo
from .words import Words

__all__ = [
    "BarView",
    "ConfigView",
    "DmaBuffer",
    "DriverDoorbell",
    "Function",
    "InterruptKind",
    "InterruptSet",
    "MappedArea",
    "ProbedBar",
    "RegionInfo",
    "Words",
]
