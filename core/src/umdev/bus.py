"""Everything a bus driver imports: attachments, the address space it fills, and the hooks it implements."""

from .attach import Attachment, AttachmentState, BoundServices
from .device.dispatch import NativeDevice
from .hookspecs import hookimpl
from .memory.address_space import AddressSpace, Mapping
from .pci.interrupts import InterruptPort
from .pci.reset import ResetKind
from .services import (
    Area,
    Decline,
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
    "AddressSpace",
    "Area",
    "Attachment",
    "AttachmentState",
    "BoundServices",
    "Decline",
    "InterruptPort",
    "InterruptSink",
    "Mapping",
    "MemoryMapper",
    "NativeDevice",
    "PagePinner",
    "PageProtector",
    "Passthrough",
    "ProtectMode",
    "Protection",
    "ResetKind",
    "Service",
    "Translator",
    "Trap",
    "hookimpl",
]
