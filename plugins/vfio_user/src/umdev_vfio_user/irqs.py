"""SET_IRQS: every combination of data and action (Linux uapi, vfio.h, struct vfio_irq_set)."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from .protocol import IrqAction, IrqData, Refused, SetIrqs

if TYPE_CHECKING:
    from collections.abc import Sequence

    from umdev.bus import InterruptPort

INTX = 0
MSIX = 2
DISCONNECT = -1


def apply(request: SetIrqs, port: InterruptPort, counts: Sequence[int]) -> None:
    """Do it. Descriptors are only borrowed.

    Raises: Refused; InvalidArgument (a descriptor that is no eventfd) or TransportError (no room for it): all vectors
    of this request are disconnected then, those too that were connected before.
    """
    if request.count == 0:
        port.disable(request.index)
        return
    if request.start + request.count > counts[request.index]:
        raise Refused(errno.EINVAL, f"vectors {request.start}+{request.count} of {counts[request.index]}")
    vectors = range(request.start, request.start + request.count)
    if request.data is IrqData.EVENTFD:
        _connect(request, port, vectors)
        return
    if request.action is not IrqAction.TRIGGER and request.index > MSIX:
        raise Refused(errno.EINVAL, "ERR and REQ have no masks")
    act = {IrqAction.MASK: port.mask, IrqAction.UNMASK: port.unmask, IrqAction.TRIGGER: port.trigger}[request.action]
    for position, vector in enumerate(vectors):
        if request.data is IrqData.NONE or request.chosen[position]:
            act(request.index, vector)


def _connect(request: SetIrqs, port: InterruptPort, vectors: range) -> None:
    if request.action is IrqAction.MASK:
        raise Refused(errno.EINVAL, "no vector is masked by an eventfd")
    if request.action is IrqAction.UNMASK:
        if request.index != INTX:
            raise Refused(errno.EINVAL, "only INTx is unmasked by an eventfd")
        connect = port.connect_unmask
    else:
        connect = port.connect
    descriptors = request.descriptors or (DISCONNECT,) * len(vectors)
    try:
        for vector, descriptor in zip(vectors, descriptors, strict=True):
            connect(request.index, vector, descriptor)
    except BaseException:
        for vector in vectors:
            connect(request.index, vector, DISCONNECT)
        raise
