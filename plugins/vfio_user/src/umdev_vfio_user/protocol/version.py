"""VERSION: what both ends can do, as JSON (specification, VFIO_USER_VERSION)."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Literal

from umdev.errors import ProtocolError

from .constants import MAX_DMA_MAPS, MAX_FDS, MAX_TRANSFER
from .structs import VERSION

MAJOR = 0
MINOR = 1
MAX_JSON = 16384
"""Bytes of JSON that are read; QEMU sends 230."""

MAX_DEPTH = 16
"""Brackets that may be open at a time; the specification's own keys need three."""


@dataclass(frozen=True, slots=True)
class Capabilities:
    """The sender's limits. Each field's default is what the specification says for a sender that is silent.

    `page_sizes` has one bit per supported size of a page in DMA maps. `vector_state` is umdev's own: a client that says
    "core" leaves MSI-X table, masks and pending bits to the server; QEMU, which says nothing, keeps them to itself.
    """

    max_msg_fds: int = 1
    max_data_xfer_size: int = MAX_TRANSFER
    max_dma_maps: int = MAX_DMA_MAPS
    page_sizes: int = 4096
    write_multiple: bool = False
    vector_state: Literal["client", "core"] = "client"


OURS = Capabilities(max_msg_fds=MAX_FDS, write_multiple=True)
"""What this implementation takes, as server and as client."""

# Field, JSON key, and the largest value that is believed.
_NUMBERS = (
    ("max_msg_fds", "max_msg_fds", 253),
    ("max_data_xfer_size", "max_data_xfer_size", 1 << 32),
    ("max_dma_maps", "max_dma_maps", 1 << 32),
    ("page_sizes", "pgsizes", (1 << 64) - 1),
)


def _too_deep(text: str) -> bool:
    depth = 0
    for character in text:
        depth += (character in "[{") - (character in "]}")
        if depth > MAX_DEPTH:
            return True
    return False


def decode_version(payload: bytes) -> tuple[int, int, Capabilities]:
    """Major, minor and capabilities of a VERSION message; JSON may be absent, unknown keys are ignored.

    Raises: ProtocolError.
    """
    if len(payload) < VERSION.size:
        raise ProtocolError(f"a VERSION message with {len(payload)} bytes")
    major, minor = VERSION.unpack_from(payload)
    text = payload[VERSION.size :]
    if len(text) > MAX_JSON:
        raise ProtocolError(f"{len(text)} bytes of version data")
    if not text.rstrip(b"\0"):
        return major, minor, Capabilities()
    if text[-1:] != b"\0":
        raise ProtocolError("version data without a NUL at its end")
    try:
        decoded = text.rstrip(b"\0").decode()
        if _too_deep(decoded):
            raise ProtocolError("version data is nested too deeply")
        data = json.loads(decoded)
    except ValueError as error:
        raise ProtocolError(f"version data is not JSON: {error}") from error
    if not isinstance(data, dict):
        raise ProtocolError("version data is not a JSON object")
    return major, minor, _capabilities(data.get("capabilities", {}))


def _capabilities(found: object) -> Capabilities:
    if not isinstance(found, dict):
        raise ProtocolError("capabilities are not a JSON object")
    values: dict[str, int] = {}
    for field, key, largest in _NUMBERS:
        if key not in found:
            continue
        value = found[key]
        if not isinstance(value, int) or isinstance(value, bool) or not 0 < value <= largest:
            raise ProtocolError(f"capability {key} is {value!r}")
        values[field] = value
    multiple = found.get("write_multiple", False)
    if not isinstance(multiple, bool):
        raise ProtocolError(f"capability write_multiple is {multiple!r}")
    state: Literal["client", "core"] = "core" if found.get("vector_state") == "core" else "client"
    return Capabilities(**values, write_multiple=multiple, vector_state=state)


def encode_version(major: int, minor: int, capabilities: Capabilities, room: int | None = None) -> bytes:
    """The payload of a VERSION message.

    With `room`, the payload is at most that many bytes long: the capabilities that fit, the most useful first. QEMU
    refuses a reply that is longer than its request.
    """
    wanted: dict[str, int | bool | str] = {
        "write_multiple": capabilities.write_multiple,
        "max_msg_fds": capabilities.max_msg_fds,
        "max_data_xfer_size": capabilities.max_data_xfer_size,
        "pgsizes": capabilities.page_sizes,
        "max_dma_maps": capabilities.max_dma_maps,
    }
    if not capabilities.write_multiple:
        del wanted["write_multiple"]
    if capabilities.vector_state != "client":
        wanted["vector_state"] = capabilities.vector_state
    while True:
        head = VERSION.pack(major, minor)
        data = json.dumps({"capabilities": wanted}, separators=(",", ":")).encode() + b"\0"
        if room is None or len(head) + len(data) <= room:
            return head + data
        if not wanted:
            return head
        wanted.popitem()


def negotiate(payload: bytes, offered: Capabilities = OURS) -> tuple[Capabilities, bytes]:
    """The server's side: the client's capabilities, and the reply's payload.

    Raises: ProtocolError for a malformed message or another major version.
    """
    major, minor, theirs = decode_version(payload)
    if major != MAJOR:
        raise ProtocolError(f"the client speaks vfio-user {major}.{minor}, this end {MAJOR}.{MINOR}")
    capabilities = Capabilities(
        max_msg_fds=offered.max_msg_fds,
        max_data_xfer_size=offered.max_data_xfer_size,
        max_dma_maps=min(offered.max_dma_maps, theirs.max_dma_maps),
        page_sizes=offered.page_sizes,
        write_multiple=offered.write_multiple and theirs.write_multiple,
    )
    return theirs, encode_version(major, min(minor, MINOR), capabilities, room=len(payload))
