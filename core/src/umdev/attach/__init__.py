"""Attachments: what joins a device, a bus and the services of a hypervisor."""

from .attachment import Attachment, AttachmentState
from .services import BoundServices

__all__ = ["Attachment", "AttachmentState", "BoundServices"]
