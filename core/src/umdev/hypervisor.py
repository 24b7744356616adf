"""Everything a hypervisor plugin imports: the services of category (b) and the hooks that ask for them."""

from .addresses import PAGE_SIZE, GuestPhys, HostVirt, Iova
from .attach import Attachment, TableTranslator
from .hookspecs import hookimpl
from .memory.address_space import AddressSpace
from .memory.compare import ComparisonProtector
from .memory.counted_pins import CountedPins, Run, page_runs, pin_error
from .memory.guest import GuestMemory
from .memory.guest_buffer import GuestBuffer
from .memory.mapping import Mapping
from .memory.owner import LockOwner
from .memory.protect import GuestProtector, NativeClient, Notified, PageClient, UserfaultProtector
from .memory.userfault import Userfault, adopt_userfault, open_userfault
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
    "PAGE_SIZE",
    "AddressSpace",
    "Attachment",
    "ComparisonProtector",
    "CountedPins",
    "Decline",
    "GuestBuffer",
    "GuestMemory",
    "GuestPhys",
    "GuestProtector",
    "HostVirt",
    "Iova",
    "LockOwner",
    "Mapping",
    "MemoryMapper",
    "NativeClient",
    "Notified",
    "PageClient",
    "PagePinner",
    "PageProtector",
    "PageWrite",
    "ProtectMode",
    "Protection",
    "Row",
    "Run",
    "Service",
    "TableTranslator",
    "Translator",
    "Userfault",
    "UserfaultProtector",
    "adopt_userfault",
    "hookimpl",
    "open_userfault",
    "page_runs",
    "pin_error",
]
