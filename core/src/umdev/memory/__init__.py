"""Guest memory as a device sees it: maps, pins, protection; and the loopback guest's own view."""

from .address_space import FILE_MAPS_MAX, MAPS_MAX, AddressSpace
from .compare import ComparisonProtector
from .guest import GuestMemory
from .mapping import Mapping
from .pins import PinTable
from .protect import GuestProtector, UserfaultProtector
from .userfault import Userfault, open_userfault

__all__ = [
    "FILE_MAPS_MAX",
    "MAPS_MAX",
    "AddressSpace",
    "ComparisonProtector",
    "GuestMemory",
    "GuestProtector",
    "Mapping",
    "PinTable",
    "Userfault",
    "UserfaultProtector",
    "open_userfault",
]
