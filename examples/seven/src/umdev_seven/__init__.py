"""The demonstration device: one function that uses each of the seven services."""

from umdev.device import DeviceType, Parent

from .device import Operation, Seven

__all__ = ["Operation", "Seven", "parent"]

parent = Parent("seven", [DeviceType("seven", "seven services", Seven, "uses each of the seven services on demand")])
