"""One 16550A UART as a register block.

Register facts: TI PC16550D data sheet (SNLS378C), section 8 "Registers", and table 8-1 for the interrupt priorities.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from umdev.device import RO, Block, Field, Flag, Register8, State

if TYPE_CHECKING:
    from .card import Card  # noqa: F401  # the type in Block["Card"]
    from .port import HostPort

FIFO_SIZE = 16
NO_INTERRUPT, TRANSMIT_EMPTY, DATA_AVAILABLE, LINE_STATUS, CHARACTER_TIMEOUT = 0x1, 0x2, 0x4, 0x6, 0xC
MODEM_STATUS = 0x0
FIFOS_ENABLED = 0xC0
TRIGGER_LEVELS = (1, 4, 8, 14)
CLEAR_TO_SEND, DATA_SET_READY, CARRIER_DETECT = 0x10, 0x20, 0x80


class InterruptEnable(Register8):
    """IER; with DLAB set the offset is the high byte of the divisor."""

    received = Flag(0)
    transmit_empty = Flag(1)
    line_status = Flag(2)
    modem_status = Flag(3)


class LineControl(Register8):
    """LCR."""

    word_length = Field(0, 1)
    divisor_latch = Flag(7)


class ModemControl(Register8):
    """MCR."""

    terminal_ready = Flag(0)
    request_to_send = Flag(1)
    out2 = Flag(3)
    loopback = Flag(4)


class LineStatus(Register8):
    """LSR."""

    data_ready = Flag(0)
    overrun = Flag(1)
    transmit_empty = Flag(5)
    idle = Flag(6)


class Uart(Block["Card"]):
    """Eight bytes of I/O space. Bytes from the host wait outside until the driver asserts RTS and the FIFO has room."""

    data = Register8(0)
    interrupt_enable = InterruptEnable(1)
    identify = Register8(2, reset=NO_INTERRUPT)  # IIR when read, FCR when written
    line_control = LineControl(3)
    modem_control = ModemControl(4)
    line_status = LineStatus(5, RO, reset=0x60)
    modem_status = Register8(6, RO)
    scratch = Register8(7)

    received: State[deque[int]] = State(deque)
    divisor = State(lambda: 1)
    fifo_control = State(lambda: 0)
    transmit_interrupt = State(lambda: False)
    port: State[HostPort | None] = State(lambda: None, save=False)
    source = State(lambda: 0, save=False)

    # What the host side calls, with the device lock held.

    @property
    def room(self) -> int:
        """How many bytes from the host fit now."""
        ready = self.modem_control.request_to_send and not self.modem_control.loopback
        return self._depth - len(self.received) if ready else 0

    def receive(self, data: bytes) -> None:
        """Take bytes from the wire; at most `room` of them."""
        self.received.extend(data)
        self.update()

    def transmitter_ready(self) -> None:
        """The host took what was sent: room for more."""
        self.line_status.transmit_empty = self.line_status.idle = True
        self.transmit_interrupt = True
        self.update()

    def carrier(self, connected: bool) -> None:
        """Somebody is, or is not, at the other end."""
        lines = CLEAR_TO_SEND | DATA_SET_READY | (CARRIER_DETECT if connected else 0)
        changed = (self.modem_status.value ^ lines) >> 4
        self.modem_status.value = lines | (self.modem_status.value & 0x0F) | changed & 0x0B
        self.update()

    # What the driver does.

    @data.on_read
    def pop(self) -> int:
        if self.line_control.divisor_latch:
            return self.divisor & 0xFF
        byte = self.received.popleft() if self.received else 0
        self.update()
        if self.port is not None and not self.received:
            self.port.wake()
        return byte

    @data.on_write
    def push(self, value: int) -> None:
        if self.line_control.divisor_latch:
            self.divisor = self.divisor & 0xFF00 | value
        elif self.modem_control.loopback:
            if len(self.received) < self._depth:
                self.received.append(value)
            self.transmitter_ready()
        else:
            self.transmit_interrupt = False
            if self.port is not None and not self.port.send(value):
                self.line_status.transmit_empty = self.line_status.idle = False
                self.update()
            else:
                self.transmitter_ready()

    @interrupt_enable.on_read
    def read_enable(self) -> int:
        return self.divisor >> 8 if self.line_control.divisor_latch else self.interrupt_enable.value

    @interrupt_enable.on_write
    def write_enable(self, value: int, old: int) -> None:
        if self.line_control.divisor_latch:
            self.divisor = self.divisor & 0xFF | value << 8
            self.interrupt_enable.value = old
            return
        self.interrupt_enable.value = value & 0x0F
        if value & 2 and not old & 2 and self.line_status.transmit_empty:
            self.transmit_interrupt = True  # enabling it while the holding register is empty interrupts at once
        self.update()

    @identify.on_read
    def read_identity(self) -> int:
        pending = self._pending()
        if pending == TRANSMIT_EMPTY:
            self.transmit_interrupt = False  # reading IIR clears this source, and no other
        self.update()
        return pending | (FIFOS_ENABLED if self.fifo_control & 1 else 0)

    @identify.on_write
    def write_fifo_control(self, value: int) -> None:
        if value & 2 or (value ^ self.fifo_control) & 1:
            self.received.clear()
        self.fifo_control = value & 0xC9
        self.update()
        if self.port is not None:
            self.port.wake()  # there may be room now

    @modem_control.on_write
    def write_modem_control(self, value: int) -> None:
        self.modem_control.value = value & 0x1F
        self.update()
        if self.port is not None:
            self.port.wake()

    @line_status.on_read
    def read_line_status(self) -> int:
        value = self.line_status.value
        self.line_status.overrun = False
        return value

    @modem_status.on_read
    def read_modem_status(self) -> int:
        if self.modem_control.loopback:  # outputs come back as inputs: RTS, DTR, OUT1, OUT2 -> CTS, DSR, RI, DCD
            control = self.modem_control.value
            return (control & 2) << 3 | (control & 1) << 5 | (control & 4) << 4 | (control & 8) << 4
        value = self.modem_status.value
        self.modem_status.value = value & 0xF0
        self.update()
        return value

    # Inside.

    @property
    def _depth(self) -> int:
        return FIFO_SIZE if self.fifo_control & 1 else 1

    def _pending(self) -> int:
        """The highest interrupt that is pending and enabled."""
        enable = self.interrupt_enable
        if enable.line_status and self.line_status.overrun:
            return LINE_STATUS
        if enable.received and self.received:
            level = TRIGGER_LEVELS[self.fifo_control >> 6] if self.fifo_control & 1 else 1
            return DATA_AVAILABLE if len(self.received) >= level else CHARACTER_TIMEOUT
        if enable.transmit_empty and self.transmit_interrupt:
            return TRANSMIT_EMPTY
        if enable.modem_status and self.modem_status.value & 0x0F:
            return MODEM_STATUS
        return NO_INTERRUPT

    def update(self) -> None:
        """Bring status and the interrupt line in step with the state."""
        self.line_status.data_ready = bool(self.received)
        interrupts = self.device.interrupts
        if self._pending() == NO_INTERRUPT:
            interrupts.lower(self.source)
        else:
            interrupts.raise_(self.source)
