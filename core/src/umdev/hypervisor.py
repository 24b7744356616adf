"""Everything a hypervisor plugin imports: the services of category (b) and the hooks that ask for them."""

from .addresses import GuestPhys, HostVirt, Iova
from .attach import Attachment
from .hookspecs import hookimpl
from .memory.address_space import AddressSpace
from .memory.mapping import Mapping
from .plugins import Row
from .services import (
    Decline,
    MemoryMapper,
    PagePinner,
    PageProtector,
    PageWrite,
    Protection,
    ProtectMode,
    Service,
    Translator,
)

__all__ = [
    "AddressSpace",
    "Attachment",
    "Decline",
    "GuestPhys",
    "HostVirt",
    "Iova",
    "Mapping",
    "MemoryMapper",
    "PagePinner",
    "PageProtector",
    "PageWrite",
    "ProtectMode",
    "Protection",
    "Row",
    "Service",
    "Translator",
    "hookimpl",
]
