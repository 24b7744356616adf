"""Debian packages, unpacked into the cache folder: no root, nothing installed, nothing of the machine's apt changed.

apt runs with a configuration of its own (apt.conf(5)): own package lists, an empty status file, the machine's mirror
and proxies. It checks the mirror's signature and every package's hash; dpkg-deb unpacks.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import unquote

from umdev_testkit import cache
from umdev_testkit.apt_sources import Archive, machine_archive
from umdev_testkit.errors import ArchiveNotTrusted, DiskFull, FetchError, NoApt, NoNetwork, PackageMissing
from umdev_testkit.progress import Progress

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

__all__ = ["Bundle", "bundle"]

_LISTS_AGE = 6 * 3600.0  # seconds after which the package lists are read again before something new is fetched
_APT_TIME = 1800.0  # seconds that one run of apt may take, downloads included
_STEP_TIME = 120.0  # seconds that unpacking one package may take
_UNPACKED = 5  # a package grows to at most about this multiple of its size, itself included
_TOOLS = ("apt-get", "apt-config", "dpkg-deb")
_WORTHLESS = ("doc", "man", "info", "locale", "lintian", "bug")  # below usr/share: never read by a guest or by QEMU
_CARRIED = re.compile(r"^Acquire::(https?|ftp|Retries|Check-|Force)\S* .*;$", re.MULTILINE)
_URI_LINE = re.compile(r"^'(?P<uri>[^']+)' (?P<file>\S+) (?P<size>\d+)")

_NO_NETWORK_ADVICE = (
    "connect this machine, or name a mirror that it can reach in $UMDEV_MIRROR, or copy a filled cache folder from "
    "another machine and name it in $UMDEV_CACHE (`python -m umdev_testkit.fetch` fills one)"
)
# The first kind whose pattern occurs in apt's messages explains a failure.
_EXPLANATIONS: tuple[tuple[type[FetchError], str, str], ...] = (
    (DiskFull, r"No space left on device|enough free space|Disk quota exceeded", "free some, or set $UMDEV_CACHE"),
    (
        ArchiveNotTrusted,
        r"NO_PUBKEY|EXPKEYSIG|BADSIG|is not signed|couldn't be verified|cannot be authenticated|Hash Sum mismatch",
        "install the current package debian-archive-keyring",
    ),
    (
        NoNetwork,
        (
            r"Could not (?:resolve|connect|handshake)|Temporary failure|[Uu]nable to connect|Network is unreachable"
            r"|Connection (?:failed|timed out|refused|reset)|Could not wait for server"
        ),
        _NO_NETWORK_ADVICE,
    ),
    (
        PackageMissing,
        (
            r"Unable to locate package|no installation candidate|No packages found|404  Not Found|have a Release file"
            r"|File not found|Failed to stat|Version .* was not found|is not available in the sources"
        ),
        "name a complete Debian mirror in $UMDEV_MIRROR",
    ),
    (NoNetwork, r"Failed to fetch", _NO_NETWORK_ADVICE),
)


@dataclass(frozen=True)
class Bundle:
    """Packages that are unpacked together into one cache entry.

    `suites` are looked at together; `target` is the one to prefer (`apt-get -t`). All dependencies are resolved; of
    the result only the packages whose names match `keep` are fetched.
    """

    name: str
    packages: tuple[str, ...]
    suites: tuple[str, ...]
    target: str = ""
    keep: str = ""


@dataclass(frozen=True)
class _Package:
    name: str
    version: str
    size: int  # bytes of the .deb


def bundle(
    wanted: Bundle,
    *,
    finish: Callable[[Path], None] | None = None,
    archive: Archive | None = None,
    folder: Path | None = None,
) -> Path:
    """Return the folder into which the bundle is unpacked; fetch it first if the cache has none.

    Needs no network when the cache has it. `finish` is called with the unpacked folder before anybody else sees it;
    what it raises discards the folder. `archive` is the machine's own mirror and `folder` the cache folder by default.

    Raises:
        FetchError: the subclass says which of no network, no apt, no such package, no trust, disk full, cache busy.
    """
    root = folder or cache.cache_folder()

    def fill(empty: Path) -> None:
        _fill(wanted, archive or machine_archive(), root, empty)
        if finish:
            finish(empty)

    return cache.entry(wanted.name, fill, folder=root)


def _fill(wanted: Bundle, archive: Archive, root: Path, prefix: Path) -> None:
    missing = [tool for tool in _TOOLS if shutil.which(tool) is None]
    if missing or platform.machine() != "x86_64":
        reason = f"has no {', '.join(missing)}" if missing else f"is {platform.machine()}, not x86_64"
        raise NoApt(
            f"cannot fetch {wanted.name}: this machine {reason}. On Debian or Ubuntu for x86-64 it works; elsewhere "
            f"copy a cache folder from such a machine (`python -m umdev_testkit.fetch` fills one) and set $UMDEV_CACHE"
        )
    apt = _Apt(root / "apt" / "+".join(wanted.suites), archive, wanted)
    downloads = prefix / ".downloads"
    downloads.mkdir()
    apt.update(max_age=_LISTS_AGE)
    try:
        packages = apt.download(downloads)
    except PackageMissing:  # the mirror may have replaced a version since the lists were read
        apt.update(max_age=0)
        packages = apt.download(downloads)
    files = sorted(downloads.glob("*.deb"))
    with Progress(f"unpacking {wanted.name}", sum(package.size for package in packages)) as progress:
        done = 0
        for file in files:
            _unpack(file, prefix)
            done += file.stat().st_size
            progress.update(done)
    shutil.rmtree(downloads)
    for name in _WORTHLESS:
        shutil.rmtree(prefix / "usr/share" / name, ignore_errors=True)


def _unpack(file: Path, prefix: Path) -> None:
    done = subprocess.run(
        ["dpkg-deb", "-x", str(file), str(prefix)], capture_output=True, text=True, timeout=_STEP_TIME, check=False
    )
    if done.returncode:
        raise _explained(f"cannot unpack {file.name} into {prefix}", done.stderr)


def _explained(what: str, messages: str) -> FetchError:
    """Make the error that fits apt's messages; the first telling line is in its text."""
    lines = [line.strip() for line in messages.splitlines() if line.strip()]
    for kind, pattern, advice in _EXPLANATIONS:
        for line in lines:
            if re.search(pattern, line):
                return kind(f"{what}: {line.removeprefix('E: ').removeprefix('W: ')}: {advice}")
    return FetchError(f"{what}: {' / '.join(lines[-3:]) or 'no message'}")


class _Apt:
    """apt with a configuration and package lists of its own, for one bundle."""

    def __init__(self, home: Path, archive: Archive, wanted: Bundle) -> None:
        self._home = home
        self._archive = archive
        self._wanted = wanted
        self._stamp = home / "updated"
        for name in ("etc/apt.conf.d", "state/lists/partial", "cache/archives/partial"):
            (home / name).mkdir(parents=True, exist_ok=True)
        (home / "state/status").touch()  # /dev/null would do for root only: apt locks beside this file
        self._configure()

    def update(self, *, max_age: float) -> None:
        """Read the package lists unless they came from this mirror and are younger than `max_age` seconds."""
        origin = (self._home / "etc/sources.list").read_text()
        try:
            if self._stamp.read_text() == origin and 0 <= time.time() - self._stamp.stat().st_mtime < max_age:
                return
        except OSError:  # never updated
            pass
        self._run("read the package lists", "apt-get", "update", "-o", "APT::Update::Error-Mode=any")
        self._stamp.write_text(origin)

    def download(self, into: Path) -> list[_Package]:
        """Download the bundle's packages; apt has verified them when this returns."""
        packages = self._resolve()
        total = sum(package.size for package in packages)
        free = shutil.disk_usage(into).free
        if free < total * _UNPACKED:
            raise DiskFull(
                f"{self._wanted.name} needs about {total * _UNPACKED / 1e6:.0f} MB and {into.parent.parent} has "
                f"{free / 1e6:.0f} MB left: free some, or name another folder in $UMDEV_CACHE"
            )
        names = [f"{package.name}={package.version}" for package in packages]
        with Progress(f"fetching {self._wanted.name} ({len(packages)} packages)", total) as progress:
            self._run(
                f"fetch {self._wanted.name}", "apt-get", "-qq", "download", *names, cwd=into,
                watch=lambda: progress.update(sum(file.stat().st_size for file in into.glob("*.deb"))),
            )  # fmt: skip
        have = sum(file.stat().st_size for file in into.glob("*.deb"))
        if have != total:
            raise FetchError(f"{self._wanted.name}: the mirror sent {have} bytes where its lists say {total}")
        return packages

    def _resolve(self) -> list[_Package]:
        target = ["-t", self._wanted.target] if self._wanted.target else []
        listing = self._run(
            f"find {', '.join(self._wanted.packages)} in {', '.join(self._wanted.suites)}",
            "apt-get", "-qq", "-y", "--print-uris", *target, "install", *self._wanted.packages,
        )  # fmt: skip
        packages = []
        for line in listing.splitlines():
            if found := _URI_LINE.match(line):
                name, version, _architecture = found["file"].removesuffix(".deb").rsplit("_", 2)
                if re.match(self._wanted.keep, name):
                    packages.append(_Package(name, unquote(version), int(found["size"])))
        return packages

    def _run(
        self, purpose: str, *command: str, cwd: Path | None = None, watch: Callable[[], None] = lambda: None
    ) -> str:
        """Run apt, calling `watch` ten times a second; return what it printed."""
        environment = os.environ | {"APT_CONFIG": str(self._home / "apt.conf"), "LC_ALL": "C"}
        output, messages = self._home / "output", self._home / "messages"
        with output.open("w") as out, messages.open("w") as err:
            process = subprocess.Popen(
                command, stdout=out, stderr=err, stdin=subprocess.DEVNULL, cwd=cwd, env=environment
            )
            deadline = time.monotonic() + _APT_TIME
            try:
                while True:
                    try:
                        process.wait(timeout=0.1)
                        break
                    except subprocess.TimeoutExpired:
                        watch()
                        if time.monotonic() > deadline:
                            raise NoNetwork(
                                f"cannot {purpose} from {self._archive.uri}: not done after {_APT_TIME:.0f} s: "
                                f"{_NO_NETWORK_ADVICE}"
                            ) from None
            finally:
                if process.poll() is None:
                    process.kill()
                    process.wait()
        said = messages.read_text(errors="replace")
        if process.returncode or "Failed to fetch" in said:  # an older apt only warns about lists that it cannot get
            raise _explained(f"cannot {purpose} from {self._archive.uri}", said)
        return output.read_text()

    def _configure(self) -> None:
        keyrings = [str(path) for path in self._archive.keyrings]
        if self._archive.key:
            key = self._home / "etc/archive-key.asc"
            key.write_text(self._archive.key)
            keyrings.append(str(key))
        options = "trusted=yes" if self._archive.trusted else f"signed-by={','.join(keyrings)}" if keyrings else ""
        bracket = f"[{options}] " if options else ""
        lines = [f"deb {bracket}{self._archive.uri} {suite} main\n" for suite in self._wanted.suites]
        (self._home / "etc/sources.list").write_text("".join(lines))
        home = self._home
        settings = {
            "Dir": home,
            "Dir::Etc::main": "/dev/null",
            "Dir::Etc::parts": home / "etc/apt.conf.d",
            "Dir::Etc::sourcelist": home / "etc/sources.list",
            "Dir::Etc::sourceparts": "/dev/null",
            "Dir::Etc::preferences": "/dev/null",
            "Dir::Etc::preferencesparts": "/dev/null",
            "Dir::Etc::trusted": "/etc/apt/trusted.gpg",
            "Dir::Etc::trustedparts": "/etc/apt/trusted.gpg.d",
            "Dir::State": home / "state",
            "Dir::State::status": home / "state/status",
            "Dir::Cache": home / "cache",
            "Dir::Cache::pkgcache": "",
            "Dir::Cache::srcpkgcache": "",
            "Acquire::Languages": "none",
            "Acquire::GzipIndexes": "true",
            "Acquire::Retries": "1",
            "Acquire::http::Timeout": "30",
            "Acquire::https::Timeout": "30",
            "APT::Architecture": "amd64",
            "APT::Architectures": "amd64",
            "APT::Install-Recommends": "false",
            "APT::Sandbox::User": "",  # the lists and downloads are ours, not apt's own user's
        }
        text = "".join(f'{name} "{value}";\n' for name, value in settings.items())
        (home / "apt.conf").write_text(text + _machine_settings())


def _machine_settings() -> str:
    """Return the machine's proxies and checks of dates, as apt-config prints them: its mirror may need them."""
    dump = subprocess.run(
        ["apt-config", "dump"], capture_output=True, text=True, timeout=_STEP_TIME, check=False,
        env=os.environ | {"LC_ALL": "C"},
    )  # fmt: skip
    return "".join(f"{found[0]}\n" for found in _CARRIED.finditer(dump.stdout))
