"""Attachments: what joins a device, a bus and the services of a hypervisor."""

from .attachment import Attachment, AttachmentState
from .bound import Bound, PushedMemory
from .function import AttachedFunction
from .host_bridge import HostBridge, Placement, PluggedFunction
from .services import BoundServices
from .translator import TableTranslator

__all__ = [
    "AttachedFunction",
    "Attachment",
    "AttachmentState",
    "Bound",
    "BoundServices",
    "HostBridge",
    "Placement",
    "PluggedFunction",
    "PushedMemory",
    "TableTranslator",
]
