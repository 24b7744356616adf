"""Attachments: what joins a device, a bus and the services of a hypervisor."""

from .attachment import Attachment, AttachmentState
from .bound import Bound, PushedMemory
from .function import AttachedFunction
from .services import BoundServices

__all__ = ["AttachedFunction", "Attachment", "AttachmentState", "Bound", "BoundServices", "PushedMemory"]
