"""A dual-port PCI serial card shared out by ports, as a umdev device model."""
