"""Everything a vendor's device model imports: the only face of umdev that a model needs.

A model sees its registers, its memory, its interrupts and a clock; never a socket, a VM or a hypervisor.
"""

from ..addresses import PAGE_SIZE, HostVirt, Iova
from ..errors import (
    BusMasterDisabled,
    DeclarationError,
    DmaAborted,
    DmaError,
    DmaWouldDeadlock,
    InvalidArgument,
    MappingPoisoned,
    NoInstanceLeft,
    NotFound,
    NotMapped,
    NotPermitted,
    PinLimit,
    ProtectError,
    SaveError,
    ServiceUnavailable,
    StateError,
    UmdevError,
)
from ..memory.mapping import Mapping
from ..pci import Interrupts, Msi, Msix, PciExpress, PciId, PowerManagement, VendorSpecific
from ..pci.reset import ResetKind
from ..services import PageWrite, ProtectMode
from .arrays import RegisterArray
from .bars import IoBar, MemoryBar, Rom
from .blocks import At, Block, Window
from .clock import Clock, ManualClock
from .events import Events
from .memory import DeviceMemory
from .model import Device
from .native import Native, api_address, give_way
from .parent import DeviceContext, DeviceType, Parent
from .queries import query
from .registers import (
    RC,
    RESERVED,
    RO,
    RW,
    W1C,
    W1S,
    WO,
    Access,
    Field,
    Flag,
    Register,
    Register8,
    Register16,
    Register64,
)
from .state import State
from .work import Work

__all__ = [
    "PAGE_SIZE",
    "RC",
    "RESERVED",
    "RO",
    "RW",
    "W1C",
    "W1S",
    "WO",
    "Access",
    "At",
    "Block",
    "BusMasterDisabled",
    "Clock",
    "DeclarationError",
    "Device",
    "DeviceContext",
    "DeviceMemory",
    "DeviceType",
    "DmaAborted",
    "DmaError",
    "DmaWouldDeadlock",
    "Events",
    "Field",
    "Flag",
    "HostVirt",
    "Interrupts",
    "InvalidArgument",
    "IoBar",
    "Iova",
    "ManualClock",
    "Mapping",
    "MappingPoisoned",
    "MemoryBar",
    "Msi",
    "Msix",
    "Native",
    "NoInstanceLeft",
    "NotFound",
    "NotMapped",
    "NotPermitted",
    "PageWrite",
    "Parent",
    "PciExpress",
    "PciId",
    "PinLimit",
    "PowerManagement",
    "ProtectError",
    "ProtectMode",
    "Register",
    "Register8",
    "Register16",
    "Register64",
    "RegisterArray",
    "ResetKind",
    "Rom",
    "SaveError",
    "ServiceUnavailable",
    "State",
    "StateError",
    "UmdevError",
    "VendorSpecific",
    "Window",
    "Work",
    "api_address",
    "give_way",
    "query",
]
