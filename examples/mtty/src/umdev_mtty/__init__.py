"""A PCI serial card shared out by ports: the mediated device of Linux's mtty sample, as a umdev device model."""

from .card import Mtty1, Mtty2
from .parent import MttyParent, parent

__all__ = ["Mtty1", "Mtty2", "MttyParent", "parent"]
