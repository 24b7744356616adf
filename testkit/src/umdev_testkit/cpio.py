"""Archives in cpio's "newc" format, as the kernel wants its initramfs.

The layout is in the kernel's Documentation/driver-api/early-userspace/buffer-format.rst.
"""

from __future__ import annotations

import stat

__all__ = ["CpioArchive"]


class CpioArchive:
    """Builds an archive in memory. Parent folders are added by themselves; a path added twice is refused.

    Owner, times and links are fixed: equal content gives equal bytes.
    """

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._names: set[str] = set()

    def add_file(self, path: str, content: bytes, mode: int = 0o644) -> None:
        """Add a regular file with these permission bits."""
        self._add(path, stat.S_IFREG | mode, content)

    def add_folder(self, path: str, mode: int = 0o755) -> None:
        """Add a folder, unless it is there already."""
        if path.strip("/") not in self._names:
            self._add(path, stat.S_IFDIR | mode)

    def add_link(self, path: str, target: str) -> None:
        """Add a symbolic link."""
        self._add(path, stat.S_IFLNK | 0o777, target.encode())

    def add_character_device(self, path: str, major: int, minor: int, mode: int = 0o600) -> None:
        """Add a character device node; building the archive needs no privilege."""
        self._add(path, stat.S_IFCHR | mode, device=(major, minor))

    def finish(self) -> bytes:
        """Return the whole archive, with its trailer; more may be added and `finish` called again."""
        return b"".join((*self._parts, _record(0, "TRAILER!!!", 0, b"", (0, 0))))

    def _add(self, path: str, mode: int, content: bytes = b"", device: tuple[int, int] = (0, 0)) -> None:
        name = path.strip("/")
        if not name or any(part in {"", ".", ".."} for part in name.split("/")):
            raise ValueError(f"{path!r} is no plain path for an archive")
        if name in self._names:
            raise ValueError(f"{path!r} is in the archive already")
        if "/" in name:
            self.add_folder(name.rpartition("/")[0])
        self._names.add(name)
        self._parts.append(_record(len(self._names), name, mode, content, device))


def _record(inode: int, name: str, mode: int, content: bytes, device: tuple[int, int]) -> bytes:
    encoded = name.encode() + b"\0"
    # magic; then eight hex digits each: inode, mode, uid, gid, links, mtime, size, device of the file system (major,
    # minor), device of a node (major, minor), length of the name, checksum (unused).
    fields = (inode, mode, 0, 0, 1, 0, len(content), 0, 0, *device, len(encoded), 0)
    header = b"070701" + b"".join(b"%08x" % value for value in fields) + encoded
    return _padded(header) + _padded(content)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)
