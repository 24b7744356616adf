"""Xen for umdev: devices for HVM and PVH domains by an ioreq server, and the services that only Xen has.

from umdev_xen import Domain

with Domain(domid) as domain:
    slot = domain.plug(device)
    domain.wait()
"""

from .domain import Domain
from .plugin import XenBus, XenHypervisor, bus, hypervisor
from .toolstack import DomainType

__all__ = ["Domain", "DomainType", "XenBus", "XenHypervisor", "bus", "hypervisor"]
