"""Random maps, unmaps and transfers against a dictionary of bytes."""

import os

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from umdev.addresses import PAGE_SIZE
from umdev.errors import Conflict, InvalidArgument, NotMapped, NotPermitted
from umdev.memory import AddressSpace
from umdev.services import Protection

FILE_PAGES = 16
BUS_PAGES = 12
pages = st.integers(0, BUS_PAGES - 1)
lengths = st.integers(1, 4)
spaces = st.integers(0, 2)
protections = st.sampled_from([Protection.READ, Protection.WRITE, Protection.READ | Protection.WRITE])
addresses = st.integers(0, BUS_PAGES * PAGE_SIZE)
sizes = st.one_of(st.sampled_from([1, 2, 4, 8]), st.integers(1, 3 * PAGE_SIZE))


class Model(RuleBasedStateMachine):
    """`maps`: (space, first page) -> (pages, file page, protection). `content`: what the file must hold."""

    @initialize()
    def start(self):
        self.file = os.memfd_create("model")
        os.ftruncate(self.file, FILE_PAGES * PAGE_SIZE)
        self.content = bytearray(FILE_PAGES * PAGE_SIZE)
        self.space = AddressSpace()
        self.maps = {}
        self.stamp = 0

    def teardown(self):
        if hasattr(self, "space"):
            self.space.close()
            os.close(self.file)

    def overlapping(self, space, page, count):
        return {
            key: entry
            for key, entry in self.maps.items()
            if key[0] == space and key[1] < page + count and page < key[1] + entry[0]
        }

    def walk(self, space, address, size, needed):
        """Runs of the file behind a range, up to the first address that fails, and why."""
        runs = []
        while size:
            found = self.overlapping(space, address // PAGE_SIZE, 1)
            if not found:
                return runs, (NotMapped, address)
            ((_, first), (count, file_page, protection)) = next(iter(found.items()))
            if needed not in protection:
                return runs, (NotPermitted, address)
            offset = address - first * PAGE_SIZE
            length = min(size, count * PAGE_SIZE - offset)
            runs.append((file_page * PAGE_SIZE + offset, length))
            address += length
            size -= length
        return runs, None

    @rule(page=pages, count=lengths, file_page=st.integers(0, FILE_PAGES), protection=protections, space=spaces)
    def map(self, page, count, file_page, protection, space):
        def attempt():
            self.space.map(
                page * PAGE_SIZE,
                count * PAGE_SIZE,
                descriptor=self.file,
                offset=file_page * PAGE_SIZE,
                protection=protection,
                space=space,
            )

        if self.overlapping(space, page, count):
            with pytest.raises(Conflict):
                attempt()
        elif file_page + count > FILE_PAGES:
            with pytest.raises(InvalidArgument):
                attempt()
        else:
            attempt()
            self.maps[space, page] = (count, file_page, protection)

    @rule(page=pages, count=st.integers(1, BUS_PAGES), space=spaces)
    def unmap(self, page, count, space):
        found = self.overlapping(space, page, count)
        if any(key[1] < page or key[1] + entry[0] > page + count for key, entry in found.items()):
            with pytest.raises(InvalidArgument):
                self.space.unmap(page * PAGE_SIZE, count * PAGE_SIZE, space)
            return
        gone = self.space.unmap(page * PAGE_SIZE, count * PAGE_SIZE, space)
        assert [mapping.iova // PAGE_SIZE for mapping in gone] == sorted(key[1] for key in found)
        for key in found:
            del self.maps[key]

    @rule(address=addresses, size=sizes, space=spaces)
    def read(self, address, size, space):
        runs, failure = self.walk(space, address, size, Protection.READ)
        if failure:
            with pytest.raises(failure[0]) as error:
                self.space.read(address, size, space)
            assert error.value.iova == failure[1]
        else:
            assert self.space.read(address, size, space) == b"".join(self.content[at : at + n] for at, n in runs)

    @rule(address=addresses, size=sizes, space=spaces)
    def write(self, address, size, space):
        self.stamp = (self.stamp + 1) % 251
        data = bytes((self.stamp + i) & 0xFF for i in range(size))
        runs, failure = self.walk(space, address, size, Protection.WRITE)
        if failure:
            with pytest.raises(failure[0]) as error:
                self.space.write(address, data, space)
            assert error.value.iova == failure[1]
        else:
            self.space.write(address, data, space)
        for at, length in runs:  # what lies before the failure has been stored
            self.content[at : at + length], data = data[:length], data[length:]

    @invariant()
    def agree(self):
        if hasattr(self, "space"):
            known = [(mapping.space, mapping.iova // PAGE_SIZE) for mapping in self.space.mappings]
            assert known == sorted(self.maps)
            assert os.pread(self.file, len(self.content), 0) == self.content


Model.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestModel = Model.TestCase
