"""QEMU's teaching PCI device, as a umdev device model."""

from umdev.device import DeviceType, Parent

from .device import Edu

__all__ = ["Edu", "parent"]

parent = Parent("edu", [DeviceType("edu", "edu", Edu, "QEMU's teaching device: factorial, DMA, MSI and INTx")])
