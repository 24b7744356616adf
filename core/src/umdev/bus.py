"""Everything a bus driver imports: attachments, the address space it fills, and the hooks it implements."""

from .attach import (
    AttachedFunction,
    Attachment,
    AttachmentState,
    Bound,
    BoundServices,
    HostBridge,
    Placement,
    PluggedFunction,
    PushedMemory,
)
from .device.dispatch import NativeDevice
from .device.native import api_address
from .hookspecs import hookimpl
from .memory.address_space import FILE_MAPS_MAX, AddressSpace
from .memory.mapping import Mapping
from .pci.indexes import IrqIndex, RegionIndex
from .pci.interrupts import InterruptPort, VectorState
from .pci.reset import ResetKind
from .plugins import Row, ServeOption
from .services import (
    Area,
    Decline,
    Doorbell,
    InterruptSink,
    MemoryMapper,
    PagePinner,
    PageProtector,
    Passthrough,
    Protection,
    ProtectMode,
    Service,
    Translator,
    Trap,
)

__all__ = [
    "FILE_MAPS_MAX",
    "AddressSpace",
    "Area",
    "AttachedFunction",
    "Attachment",
    "AttachmentState",
    "Bound",
    "BoundServices",
    "Decline",
    "Doorbell",
    "HostBridge",
    "InterruptPort",
    "InterruptSink",
    "IrqIndex",
    "Mapping",
    "MemoryMapper",
    "NativeDevice",
    "PagePinner",
    "PageProtector",
    "Passthrough",
    "Placement",
    "PluggedFunction",
    "ProtectMode",
    "Protection",
    "PushedMemory",
    "RegionIndex",
    "ResetKind",
    "Row",
    "ServeOption",
    "Service",
    "Translator",
    "Trap",
    "VectorState",
    "api_address",
    "hookimpl",
]
