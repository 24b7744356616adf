"""PCI: configuration space, capabilities and interrupts of a function."""

from .bars import BarInfo, BarKind
from .capabilities import Capability, Msi, Msix, PciExpress, PortType, PowerManagement, VendorSpecific
from .config import ConfigSpace, InterruptState
from .control import FunctionControl
from .ids import PciId
from .indexes import IrqIndex, RegionIndex
from .interrupts import InterruptMode, InterruptPort, Interrupts, VectorState
from .registers import ConfigRegister
from .reset import ResetKind

__all__ = [
    "BarInfo",
    "BarKind",
    "Capability",
    "ConfigRegister",
    "ConfigSpace",
    "FunctionControl",
    "InterruptMode",
    "InterruptPort",
    "InterruptState",
    "Interrupts",
    "IrqIndex",
    "Msi",
    "Msix",
    "PciExpress",
    "PciId",
    "PortType",
    "PowerManagement",
    "RegionIndex",
    "ResetKind",
    "VectorState",
    "VendorSpecific",
]
