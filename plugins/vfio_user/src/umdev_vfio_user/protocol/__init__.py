"""The vfio-user protocol without input or output: bytes and descriptors in, events out, bytes to send back.

Source of every number: vfio-user Protocol Specification (QEMU, docs/interop/vfio-user) and Linux' `vfio.h`, whose
structures and flags the protocol carries. All values are in the host's byte order, which is little-endian here.
"""

from __future__ import annotations

from .connection import Connection, Role
from .constants import (
    Command,
    DeviceFlag,
    DmaMapFlag,
    DmaUnmapFlag,
    HeaderFlag,
    IoEventFdFlag,
    IrqAction,
    IrqData,
    IrqInfoFlag,
    RegionInfoFlag,
)
from .events import (
    DeviceFeature,
    DeviceReset,
    DmaMap,
    DmaRead,
    DmaUnmap,
    DmaWrite,
    Event,
    GetDeviceInfo,
    GetIrqInfo,
    GetRegionInfo,
    GetRegionIoFds,
    Message,
    RegionRead,
    RegionWrite,
    RegionWriteMulti,
    Reply,
    Request,
    SetIrqs,
    Version,
)
from .requests import Refused, decode_request
from .version import Capabilities, decode_version, encode_version, negotiate

__all__ = [
    "Capabilities",
    "Command",
    "Connection",
    "DeviceFeature",
    "DeviceFlag",
    "DeviceReset",
    "DmaMap",
    "DmaMapFlag",
    "DmaRead",
    "DmaUnmap",
    "DmaUnmapFlag",
    "DmaWrite",
    "Event",
    "GetDeviceInfo",
    "GetIrqInfo",
    "GetRegionInfo",
    "GetRegionIoFds",
    "HeaderFlag",
    "IoEventFdFlag",
    "IrqAction",
    "IrqData",
    "IrqInfoFlag",
    "Message",
    "Refused",
    "RegionInfoFlag",
    "RegionRead",
    "RegionWrite",
    "RegionWriteMulti",
    "Reply",
    "Request",
    "Role",
    "SetIrqs",
    "Version",
    "decode_request",
    "decode_version",
    "encode_version",
    "negotiate",
]
