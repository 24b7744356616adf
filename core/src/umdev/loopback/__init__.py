"""The bus without a VM: guest memory is a memfd of this process, the driver is the caller."""

from .bus import LoopbackBus, bus
from .function import LoopbackFunction

__all__ = ["LoopbackBus", "LoopbackFunction", "bus"]
