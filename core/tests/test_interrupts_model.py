"""The interrupt port against a model of the rules, in every order that hypothesis thinks of."""

import os

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from umdev._native import ffi, lib
from umdev.pci import InterruptPort, Interrupts, InterruptState, IrqIndex

MSI_VECTORS = 4
MSIX_VECTORS = 3
SOURCES = 3
states = st.sets(st.sampled_from(list(InterruptState))).map(sum)
messages = st.one_of(
    st.tuples(st.just(IrqIndex.MSI), st.integers(0, MSI_VECTORS - 1)),
    st.tuples(st.just(IrqIndex.MSIX), st.integers(0, MSIX_VECTORS - 1)),
)


class Rules(RuleBasedStateMachine):
    """The rules in the plainest words: what may go out goes out at once, else it waits where waiting is allowed."""

    def __init__(self):
        super().__init__()
        self.port = InterruptPort(Interrupts(msi=MSI_VECTORS, msix=MSIX_VECTORS, msix_bar=0, intx=True))
        self.lines = [(IrqIndex.INTX, 0)]
        self.messages = [(IrqIndex.MSI, n) for n in range(MSI_VECTORS)] + [
            (IrqIndex.MSIX, n) for n in range(MSIX_VECTORS)
        ]
        self.events = {place: os.eventfd(0, os.EFD_NONBLOCK) for place in self.lines + self.messages}
        self.connected = set()
        self.client_masked = set()
        self.state = 0
        self.allocated, self.msi_mask = 1, 0
        self.table_masked = set(range(MSIX_VECTORS))
        self.high = set()
        self.pending = set()
        self.expected = dict.fromkeys(self.events, 0)

    def teardown(self):
        self.port.close()
        for descriptor in self.events.values():
            os.close(descriptor)

    # The model.

    def active(self):
        if self.state & InterruptState.MSIX_ENABLED:
            return IrqIndex.MSIX
        return IrqIndex.MSI if self.state & InterruptState.MSI_ENABLED else IrqIndex.INTX

    def held(self, place):
        index, vector = place
        if place in self.client_masked:
            return True
        if index == IrqIndex.MSI:
            return bool(self.msi_mask >> vector & 1)
        return bool(self.state & InterruptState.MSIX_MASKED) or vector in self.table_masked

    def settle(self):
        line = (IrqIndex.INTX, 0)
        open_pin = self.active() == IrqIndex.INTX and not self.state & InterruptState.INTX_DISABLED
        if self.high and open_pin and line in self.connected and line not in self.client_masked:
            self.expected[line] += 1
            self.client_masked.add(line)
        for place in sorted(self.pending):
            ready = place in self.connected and not self.held(place) and self.state & InterruptState.BUS_MASTER
            if ready and place[0] == self.active():
                self.pending.discard(place)
                self.expected[place] += 1

    def send(self, vector):
        index = self.active()
        if not self.state & InterruptState.BUS_MASTER:
            return
        place = (index, vector % self.allocated if index == IrqIndex.MSI else vector)
        if place in self.connected and not self.held(place):
            self.expected[place] += 1
        else:
            self.pending.add(place)

    # What happens.

    @rule(vector=st.integers(0, SOURCES - 1))
    def raise_(self, vector):
        self.port.raise_(vector)
        if self.active() == IrqIndex.INTX:
            self.high.add(vector)
            self.settle()
        else:
            self.send(vector)

    @rule(vector=st.integers(0, SOURCES - 1))
    def lower(self, vector):
        self.port.lower(vector)
        self.high.discard(vector)

    @precondition(lambda self: self.active() != IrqIndex.INTX)
    @rule(vector=st.integers(0, SOURCES - 1))
    def signal(self, vector):
        assert self.port.signal(vector) is bool(self.state & InterruptState.BUS_MASTER)
        self.send(vector)

    @rule(state=states)
    def configure(self, state):
        self.port.set_state(state)
        for index, flag in ((IrqIndex.MSI, InterruptState.MSI_ENABLED), (IrqIndex.MSIX, InterruptState.MSIX_ENABLED)):
            if self.state & ~state & flag:
                self.pending = {place for place in self.pending if place[0] != index}
        self.state = state
        self.settle()

    @rule(allocated=st.sampled_from([1, 2, 4]), mask=st.integers(0, 15))
    def configure_msi(self, allocated, mask):
        self.port.set_msi(allocated, mask)
        self.allocated, self.msi_mask = allocated, mask
        self.settle()

    @rule(vector=st.integers(0, MSIX_VECTORS - 1), masked=st.booleans())
    def write_table(self, vector, masked):
        control = ffi.new("uint32_t *", masked)
        lib.umdev_irq_msix_table(self.port.pointer, 16 * vector + 12, control, 4, lib.UMDEV_WRITE)
        (self.table_masked.add if masked else self.table_masked.discard)(vector)
        self.settle()

    @rule(place=st.one_of(messages, st.just((IrqIndex.INTX, 0))), listen=st.booleans())
    def connect(self, place, listen):
        self.port.connect(*place, self.events[place] if listen else -1)
        (self.connected.add if listen else self.connected.discard)(place)
        self.settle()

    @rule(place=st.one_of(messages, st.just((IrqIndex.INTX, 0))), masked=st.booleans())
    def mask(self, place, masked):
        (self.port.mask if masked else self.port.unmask)(*place)
        (self.client_masked.add if masked else self.client_masked.discard)(place)
        self.settle()

    @rule(index=st.sampled_from([IrqIndex.INTX, IrqIndex.MSI, IrqIndex.MSIX]))
    def disable(self, index):
        self.port.disable(index)
        for known in (self.connected, self.client_masked, self.pending):
            known -= {place for place in known if place[0] == index}

    @rule()
    def reset(self):
        self.port.reset()
        self.high.clear()
        self.pending.clear()
        self.table_masked = set(range(MSIX_VECTORS))

    @rule()
    def save_and_restore(self):
        self.port.restore(self.port.save())
        self.settle()

    # What must hold.

    @invariant()
    def every_signal_arrived_and_no_other(self):
        for place, descriptor in self.events.items():
            try:
                count = os.eventfd_read(descriptor)
            except BlockingIOError:
                count = 0
            assert count == self.expected[place], place
            self.expected[place] = 0

    @invariant()
    def what_the_driver_can_read_agrees(self):
        assert self.port.level == bool(self.high)
        assert self.port.msi_pending == sum(1 << vector for index, vector in self.pending if index == IrqIndex.MSI)
        assert self.port.save()["msix_pending"] == sorted(v for index, v in self.pending if index == IrqIndex.MSIX)
        assert IrqIndex[self.port.mode.upper()] == self.active()


TestRules = Rules.TestCase
TestRules.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
