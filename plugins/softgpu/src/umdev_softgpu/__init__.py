"""The software engine of umdev's GPUs: memory port, page-table walker, blitter, fair scheduler.

Vendors build on it; it knows none of them. Their C gets the same things through `softgpu.h`.
"""

from .bells import Bell
from .blit import Blit, Brush, Rect, Surface, Tiling
from .budget import Budget, Step
from .client import Client, Job, Queue
from .faults import Fault, Reason
from .native_api import api_address, get_include
from .policy import FairShare, Policy, Turn
from .port import Decoder, MemoryPort
from .scheduler import Scheduler
from .slots import BestEffort, EqualShare, FixedShare
from .space import Format, Level, Masks, Run, Space, Target

__all__ = [
    "Bell",
    "BestEffort",
    "Blit",
    "Brush",
    "Budget",
    "Client",
    "Decoder",
    "EqualShare",
    "FairShare",
    "Fault",
    "FixedShare",
    "Format",
    "Job",
    "Level",
    "Masks",
    "MemoryPort",
    "Policy",
    "Queue",
    "Reason",
    "Rect",
    "Run",
    "Scheduler",
    "Space",
    "Step",
    "Surface",
    "Target",
    "Tiling",
    "Turn",
    "api_address",
    "get_include",
]
