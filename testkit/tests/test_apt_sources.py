"""Which mirror is taken from the machine's apt sources."""

from pathlib import Path

import pytest
from umdev_testkit.apt_sources import (
    DEFAULT_KEYRING,
    Archive,
    machine_archive,
    parse_deb822,
    parse_list,
)
from umdev_testkit.errors import NoApt

OWN = (DEFAULT_KEYRING,) if DEFAULT_KEYRING.exists() else ()


@pytest.fixture
def etc(tmp_path, monkeypatch):
    monkeypatch.delenv("UMDEV_MIRROR", raising=False)
    (tmp_path / "sources.list.d").mkdir()
    return tmp_path


def test_one_line_with_options_comment_and_source_entry():
    text = """
# deb http://old.example/debian bookworm main
deb-src http://mirror.example/debian bookworm main
deb [arch=amd64 signed-by=/k/a.gpg] http://mirror.example/debian bookworm main contrib # ours
deb http://flat.example/ ./
"""
    first, flat = parse_list(text)
    assert first.uris == ("http://mirror.example/debian",)
    assert first.suites == ("bookworm",)
    assert first.components == ("main", "contrib")
    assert first.options == {"arch": "amd64", "signed-by": "/k/a.gpg"}
    assert flat.components == ()


def test_deb822_with_comments_several_paragraphs_and_disabled_one():
    text = """\
# snapshot
Types: deb deb-src
URIs: http://a.example/debian
# in between
Suites: trixie trixie-updates
Components: main
Signed-By: /k/a.gpg

Enabled: no
Types: deb
URIs: http://b.example/debian
Suites: trixie
Components: main

Types: deb-src
URIs: http://c.example/debian
Suites: trixie
Components: main
"""
    (only,) = parse_deb822(text)
    assert only.uris == ("http://a.example/debian",)
    assert only.suites == ("trixie", "trixie-updates")
    assert only.options == {"signed-by": "/k/a.gpg"}


def test_security_and_third_parties_are_never_taken(etc):
    (etc / "sources.list").write_text(
        "deb http://mirror.example/debian-security bookworm-security main\n"
        "deb https://packages.vendor.example/debian/12/prod bookworm stable\n"
        "deb https://apt.vendor.example/pool bookworm main\n"
        "deb http://mirror.example/debian-security trixie/updates main\n"
    )
    with pytest.raises(NoApt, match="UMDEV_MIRROR"):
        machine_archive(etc)


def test_debian_is_preferred_to_a_vendor_with_the_same_suite(etc):
    (etc / "sources.list.d/a.list").write_text("deb https://packages.vendor.example/debian bookworm main\n")
    (etc / "sources.list.d/debian.sources").write_text(
        "Types: deb\nURIs: http://other.example/debian/\nSuites: bookworm bookworm-updates\nComponents: main\n"
        "Signed-By: /usr/share/keyrings/debian-archive-bookworm-stable.gpg\n"
    )
    archive = machine_archive(etc)
    assert archive.uri == "http://other.example/debian"
    # Debian's own keyring comes beside: the one named may lack the keys of the release that we need.
    assert archive.keyrings == (Path("/usr/share/keyrings/debian-archive-bookworm-stable.gpg"), *OWN)


def test_updates_alone_name_the_mirror(etc):
    (etc / "sources.list").write_text("deb http://mirror.example/debian bookworm-updates main\n")
    assert machine_archive(etc).uri == "http://mirror.example/debian"


def test_key_inside_the_source(etc):
    (etc / "sources.list.d/x.sources").write_text(
        "Types: deb\nURIs: http://mirror.example/debian\nSuites: trixie\nComponents: main\n"
        "Signed-By:\n -----BEGIN PGP PUBLIC KEY BLOCK-----\n .\n mDMEabc\n -----END PGP PUBLIC KEY BLOCK-----\n"
    )
    key = machine_archive(etc).key
    assert key == "-----BEGIN PGP PUBLIC KEY BLOCK-----\n\nmDMEabc\n-----END PGP PUBLIC KEY BLOCK-----\n"


def test_trusted_is_carried_over(etc):
    (etc / "sources.list").write_text("deb [trusted=yes] http://mirror.example/debian trixie main\n")
    assert machine_archive(etc).trusted


def test_environment_wins(etc, monkeypatch):
    (etc / "sources.list").write_text("deb http://mirror.example/debian trixie main\n")
    monkeypatch.setenv("UMDEV_MIRROR", "http://other.example/debian/")
    assert machine_archive(etc) == Archive("http://other.example/debian", OWN)


def test_unreadable_folder_means_no_mirror(tmp_path, monkeypatch):
    monkeypatch.delenv("UMDEV_MIRROR", raising=False)
    with pytest.raises(NoApt, match="UMDEV_MIRROR"):
        machine_archive(tmp_path / "none")
