"""QEMU's teaching PCI device, as a umdev device model."""
