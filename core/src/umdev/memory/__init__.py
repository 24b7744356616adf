"""Guest memory as a device sees it: maps, pins, protection; and the loopback guest's own view."""

from .address_space import MAPS_MAX, AddressSpace
from .mapping import Mapping

__all__ = ["MAPS_MAX", "AddressSpace", "Mapping"]
