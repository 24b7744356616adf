"""The command streamer: what an engine does with what it finds in rings and batch buffers.

Commands: Intel Graphics PRM, Kaby Lake, volume 2a (command reference, instructions).
"""

from .execution import Execution
from .outcome import Outcome

__all__ = ["Execution", "Outcome"]
