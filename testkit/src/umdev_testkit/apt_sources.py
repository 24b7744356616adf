"""Which Debian mirror this machine uses, read from apt's own sources.

Both formats of sources.list(5): one line per source (`*.list`) and deb822 paragraphs (`*.sources`).
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from umdev_testkit.errors import NoApt

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = ["Archive", "Source", "machine_archive", "parse_deb822", "parse_list"]

DEFAULT_KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
_CODENAMES = {"buster", "bullseye", "bookworm", "trixie", "forky", "duke", "sid"}
_ALIASES = {"oldoldstable", "oldstable", "stable", "testing", "unstable"}
_LIST_LINE = re.compile(
    r"^\s*(deb)\s+(?:\[(?P<options>[^\]]*)\]\s+)?(?P<uri>\S+)\s+(?P<suite>\S+)\s*(?P<components>.*)$"
)


@dataclass(frozen=True)
class Source:
    """One binary source of packages, as apt is told about it. Option names are in lower case."""

    uris: tuple[str, ...]
    suites: tuple[str, ...]
    components: tuple[str, ...]
    options: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Archive:
    """A Debian mirror and how its signature is checked.

    `keyrings` are files; `key` is an ASCII-armoured key that stood in the source itself; `trusted` means that the
    machine's owner told apt not to check.
    """

    uri: str
    keyrings: tuple[Path, ...] = ()
    key: str = ""
    trusted: bool = False


def parse_list(text: str) -> Iterator[Source]:
    """Yield the binary sources of a one-line-style file; lines that do not parse are passed over."""
    for line in text.splitlines():
        if found := _LIST_LINE.match(line.split("#", 1)[0]):
            pairs = (pair.split("=", 1) for pair in (found["options"] or "").split() if "=" in pair)
            options = {name.lower().rstrip("+-"): value for name, value in pairs}
            yield Source((found["uri"],), (found["suite"],), tuple(found["components"].split()), options)


def parse_deb822(text: str) -> Iterator[Source]:
    """Yield the enabled binary sources of a deb822-style file."""
    for paragraph in re.split(r"\n[ \t]*\n", "\n".join(ln for ln in text.splitlines() if not ln.startswith("#"))):
        fields: dict[str, str] = {}
        name = ""
        for line in paragraph.splitlines():
            if line[:1] in {" ", "\t"} and name:
                fields[name] += "\n" + ("" if line.strip() == "." else line.strip())
            elif ":" in line:
                name, value = line.split(":", 1)
                name = name.strip().lower()
                fields[name] = value.strip()
        enabled = fields.pop("enabled", "yes").lower() not in {"no", "false", "off", "0"}
        types, uris, suites, components = (
            tuple(fields.pop(key, "").split()) for key in ("types", "uris", "suites", "components")
        )
        if enabled and "deb" in types and uris and suites:
            yield Source(uris, suites, components, fields)


def machine_archive(etc: Path = Path("/etc/apt")) -> Archive:
    """Return the Debian mirror that `$UMDEV_MIRROR` names, else the one of this machine's apt.

    Sources of security updates and of other vendors are never taken for the mirror. Debian's own keyring is accepted
    beside the source's own `signed-by`, as the latter may hold the keys of one release only.

    Raises:
        NoApt: this machine's apt names no Debian mirror.
    """
    own = (DEFAULT_KEYRING,) if DEFAULT_KEYRING.exists() else ()
    if named := os.environ.get("UMDEV_MIRROR"):
        return Archive(named.rstrip("/"), own)
    rated = [(_likeness(uri, source), uri, source) for source in _machine_sources(etc) for uri in source.uris]
    rating, uri, source = max(rated, key=lambda item: item[0], default=(0, "", Source((), (), ())))
    if rating == 0:
        raise NoApt(f"no source under {etc} is a Debian mirror: name one in UMDEV_MIRROR, as http://HOST/debian")
    signed_by = source.options.get("signed-by", "")
    trusted = source.options.get("trusted", "") == "yes"
    if "BEGIN PGP" in signed_by:
        return Archive(uri.rstrip("/"), own, signed_by.strip() + "\n", trusted)
    files = tuple(Path(name) for name in re.split(r"[,\s]+", signed_by) if name.startswith("/"))
    return Archive(uri.rstrip("/"), tuple(dict.fromkeys((*files, *own))), "", trusted)


def _machine_sources(etc: Path) -> Iterator[Source]:
    folder = etc / "sources.list.d"
    for path in [etc / "sources.list", *sorted(folder.glob("*.list")), *sorted(folder.glob("*.sources"))]:
        try:
            text = path.read_text(errors="replace")
        except OSError:  # absent, or not for us to read
            continue
        yield from (parse_deb822 if path.suffix == ".sources" else parse_list)(text)


def _likeness(uri: str, source: Source) -> int:
    """Rate how surely this is a mirror of Debian itself; 0 = it is not."""
    names = {suite.removesuffix("-updates").removesuffix("-backports") for suite in source.suites}
    if not names & (_CODENAMES | _ALIASES) or "main" not in source.components:
        return 0
    address = urlsplit(uri)
    host = address.hostname or ""
    return (
        2 * ("debian-archive" in source.options.get("signed-by", ""))
        + 2 * (host == "debian.org" or host.endswith(".debian.org"))
        + 1 * ("debian" in address.path.split("/"))
    )
