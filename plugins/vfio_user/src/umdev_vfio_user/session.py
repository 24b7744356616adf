"""One client: its control messages answered on behalf of an attachment."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import threading
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from umdev.bus import FILE_MAPS_MAX, AttachmentState, Protection, ResetKind, VectorState
from umdev.errors import MapLimit, ProtocolError, TransportError, UmdevError

from . import irqs
from .describe import describe, refusal
from .info import device_info, irq_info, region_info
from .io_fds import encode_io_fds
from .protocol import (
    Capabilities,
    Connection,
    DeviceFeature,
    DeviceReset,
    DmaMap,
    DmaMapFlag,
    DmaUnmap,
    GetDeviceInfo,
    GetIrqInfo,
    GetRegionInfo,
    GetRegionIoFds,
    Message,
    Refused,
    Request,
    SetIrqs,
    Version,
    decode_request,
    negotiate,
)
from .protocol.constants import MAX_FDS, Command
from .protocol.requests import FROM_CLIENT
from .protocol.version import OURS

if TYPE_CHECKING:
    from collections.abc import Callable

    from umdev.bus import Attachment

    from .link import Link

log = logging.getLogger("umdev.vfio_user")

OFFERED = replace(OURS, max_dma_maps=FILE_MAPS_MAX)
"""What a server takes of its client."""


def ends_process(error: BaseException) -> bool:
    """What Ctrl-C and sys.exit raise ends the main thread. In any other it would end a server without a word."""
    meant = isinstance(error, (KeyboardInterrupt, SystemExit))
    return meant and threading.current_thread() is threading.main_thread()


@dataclass(frozen=True, slots=True)
class Answer:
    """A reply's payload and the descriptors that go with it; these stay the device's."""

    payload: bytes = b""
    descriptors: tuple[int, ...] = ()


class Session:
    """Made when a client has connected, dropped when it is gone. Called by the loop thread only."""

    def __init__(self, attachment: Attachment, link: Link, *, vector_state: Literal["client", "core"] | None) -> None:
        """`vector_state` None: as the client says, else "client" or "core" for every client."""
        self.attachment = attachment
        self.link = link
        self.client: Capabilities | None = None
        """What the client can do, once it has said so."""
        self._vector_state = vector_state
        self._answers: dict[type[Any], Callable[[Any], Answer]] = {
            DmaMap: self._dma_map,
            DmaUnmap: self._dma_unmap,
            GetDeviceInfo: lambda _: Answer(device_info()),
            GetRegionInfo: self._region_info,
            GetRegionIoFds: self._region_io_fds,
            GetIrqInfo: lambda request: Answer(irq_info(request.index, attachment.irq_counts)),
            SetIrqs: self._set_irqs,
            DeviceReset: self._reset,
            DeviceFeature: self._feature,
        }

    @property
    def welcome(self) -> bool:
        """Whether the device is still served: somebody else may have detached it."""
        return self.attachment.state not in (AttachmentState.DETACHED, AttachmentState.REMOVED)

    def refuse(self, message: Message) -> None:
        """Answer with EIO, if anybody still listens. Closes the message's descriptors."""
        try:
            with contextlib.suppress(TransportError):
                self._refuse(message, errno.EIO)
        finally:
            for descriptor in message.descriptors:
                os.close(descriptor)

    def answer(self, message: Message) -> None:
        """Do what the message asks for and answer it. Closes its descriptors.

        Raises: ProtocolError when the connection must end; Disconnected, TransportError; KeyboardInterrupt and
        SystemExit of the model in the main thread, once the client has its answer.
        """
        try:
            try:
                request, reply = self._serve(message)
            except UmdevError as error:
                self._refuse(message, error.errno or errno.EIO)
                # What a client asks for in vain is its own business; what breaks the protocol ends the connection.
                if isinstance(error, ProtocolError) and not isinstance(error, Refused):
                    raise
                log.debug("%s: %s", self.attachment.device, error)
            except BaseException as error:  # a model's reset or on_unmap may raise anything; the client gets its answer
                log.exception("%s: message %d failed", self.attachment.device, message.command)
                if ends_process(error):
                    with contextlib.suppress(TransportError):
                        self._refuse(message, errno.EIO)
                    raise
                self._refuse(message, errno.EIO)
            else:
                if self.link.logging:
                    self.link.log(describe(message, request, "ok"))
                data = Connection.reply(message, reply.payload)
                self.link.send(data, reply.descriptors if data else ())
        finally:
            for descriptor in message.descriptors:
                os.close(descriptor)

    def _refuse(self, message: Message, code: int) -> None:
        if self.link.logging:
            self.link.log(describe(message, None, refusal(code)))
        self.link.send(Connection.reply(message, error=code))

    def _serve(self, message: Message) -> tuple[Request, Answer]:
        if self.client is None:
            if message.command != Command.VERSION:
                raise ProtocolError(f"command {message.command} before VERSION")
            return self._version(message)
        if message.command == Command.VERSION:
            raise Refused(errno.EINVAL, "VERSION again")
        if not self.welcome:
            raise Refused(errno.ENODEV, "the device has been detached")
        request = decode_request(message, FROM_CLIENT)
        serve = self._answers.get(type(request))
        if serve is None:  # C serves the accesses
            raise Refused(errno.EINVAL, f"command {message.command} has no place here")
        return request, serve(request)

    def _version(self, message: Message) -> tuple[Request, Answer]:
        client, reply = negotiate(message.payload, OFFERED)
        self.client = client
        state = self._vector_state or client.vector_state
        self.attachment.interrupts.set_policy(VectorState.CORE if state == "core" else VectorState.CLIENT)
        self.link.set_ready(client.max_data_xfer_size)
        major, minor = int.from_bytes(reply[0:2], "little"), int.from_bytes(reply[2:4], "little")
        return Version(major, minor, client), Answer(reply)

    def _dma_map(self, request: DmaMap) -> Answer:
        protection = Protection(0)
        if request.flags & DmaMapFlag.READABLE:
            protection |= Protection.READ
        if request.flags & DmaMapFlag.WRITABLE:
            protection |= Protection.WRITE
        memory = self.attachment.memory
        if memory.count >= OFFERED.max_dma_maps:
            raise MapLimit(f"the client was told max_dma_maps={OFFERED.max_dma_maps}, and has as many")
        memory.map(
            request.address,
            request.size,
            descriptor=request.descriptor,
            offset=request.offset if request.descriptor is not None else 0,
            protection=protection,
        )
        return Answer()

    def _dma_unmap(self, request: DmaUnmap) -> Answer:
        memory = self.attachment.memory
        if request.all_maps:
            memory.unmap_all()
        else:
            memory.unmap(request.address, request.size)
        return Answer(request.payload)

    def _region_info(self, request: GetRegionInfo) -> Answer:
        info = self.attachment.regions.get(request.index)
        payload, descriptor = region_info(request.index, info, request.room)
        return Answer(payload, () if descriptor is None else (descriptor,))

    def _region_io_fds(self, request: GetRegionIoFds) -> Answer:
        assert self.client is not None, "VERSION came first"
        bells = [bell for bell in self.attachment.doorbells if bell.region == request.index]
        # What has no descriptor of its own in one message stays trapped: a shared one would not tell which was rung.
        del bells[min(self.client.max_msg_fds, MAX_FDS) :]
        region = self.attachment.device.regions.get(request.index)
        ports = region is not None and region.kind == "io"
        payload, fits = encode_io_fds(request.index, bells, request.room, ports=ports)
        return Answer(payload, tuple(self.attachment.connect_doorbell(bell) for bell in bells) if fits else ())

    def _set_irqs(self, request: SetIrqs) -> Answer:
        irqs.apply(request, self.attachment.interrupts, self.attachment.irq_counts)
        return Answer()

    def _reset(self, _request: DeviceReset) -> Answer:
        self.attachment.reset(ResetKind.FLR)
        return Answer()

    def _feature(self, request: DeviceFeature) -> Answer:
        raise Refused(errno.ENOTTY, f"device feature {request.feature} (migration, dirty logging) is not offered")
