"""The archive format, read back by an independent reader."""

import stat

import pytest
from umdev_testkit.cpio import CpioArchive


def entries(data):
    """Read a newc archive by the documented layout: name -> (mode, content, device)."""
    found, offset = {}, 0
    while True:
        assert data[offset : offset + 6] == b"070701"
        fields = [int(data[offset + 6 + 8 * n : offset + 14 + 8 * n], 16) for n in range(13)]
        mode, size, device, length = fields[1], fields[6], (fields[9], fields[10]), fields[11]
        name = data[offset + 110 : offset + 110 + length]
        assert name.endswith(b"\0")
        start = (offset + 110 + length + 3) & ~3
        if name == b"TRAILER!!!\0":
            assert len(data) == start
            return found
        found[name[:-1].decode()] = (mode, data[start : start + size], device)
        offset = (start + size + 3) & ~3


def test_what_goes_in_comes_out():
    archive = CpioArchive()
    for size in range(6):  # every padding
        archive.add_file(f"/deep/er/f{'x' * size}", bytes(range(size)), 0o640)
    archive.add_link("bin/sh", "busybox")
    archive.add_character_device("dev/console", 5, 1)
    archive.add_folder("deep", 0o700)  # is there already
    got = entries(archive.finish())
    assert list(got)[:2] == ["deep", "deep/er"]
    assert got["deep"][0] == stat.S_IFDIR | 0o755
    for size in range(6):
        assert got[f"deep/er/f{'x' * size}"] == (stat.S_IFREG | 0o640, bytes(range(size)), (0, 0))
    assert got["bin/sh"] == (stat.S_IFLNK | 0o777, b"busybox", (0, 0))
    assert got["dev/console"] == (stat.S_IFCHR | 0o600, b"", (5, 1))


def test_equal_content_gives_equal_bytes():
    def make():
        archive = CpioArchive()
        archive.add_file("a", b"1")
        return archive.finish()

    assert make() == make()


@pytest.mark.parametrize("path", ["", "/", "a//b", "../a", "a/./b", "a/.."])
def test_paths_that_would_leave_the_tree_are_refused(path):
    with pytest.raises(ValueError, match="plain path"):
        CpioArchive().add_file(path, b"")


def test_a_path_twice_is_refused():
    archive = CpioArchive()
    archive.add_file("a/b", b"")
    with pytest.raises(ValueError, match="already"):
        archive.add_link("/a/b", "c")
