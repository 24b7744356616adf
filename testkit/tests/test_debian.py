"""The real apt fetches packages from a small mirror in a folder, so no network is needed; and what if there is none."""

import hashlib
import io
import shutil
import subprocess
import sys

import pytest
from umdev_testkit.apt_sources import Archive
from umdev_testkit.debian import Bundle, bundle
from umdev_testkit.errors import ArchiveNotTrusted, FetchError, NoApt, NoNetwork, PackageMissing
from umdev_testkit.progress import Progress

CLOSED = Archive("http://127.0.0.1:9/debian", trusted=True)  # the discard port: nobody listens


class Mirror:
    """A Debian mirror with one suite, made by hand."""

    def __init__(self, folder):
        self.folder = folder
        self.paragraphs = []
        (folder / "pool").mkdir(parents=True)

    def add(self, name, version="1.0", depends="", files=()):
        tree = self.folder / "build" / name
        (tree / "DEBIAN").mkdir(parents=True)
        control = f"Package: {name}\nVersion: {version}\nArchitecture: amd64\nMaintainer: nobody <n@example>\n"
        control += (f"Depends: {depends}\n" if depends else "") + "Description: for a test\n"
        (tree / "DEBIAN/control").write_text(control)
        for path in files:
            (tree / path).parent.mkdir(parents=True, exist_ok=True)
            (tree / path).write_text(f"{name} {version}")
        deb = self.folder / "pool" / f"{name}_{version.replace(':', '%3a')}_amd64.deb"
        subprocess.run(["dpkg-deb", "--root-owner-group", "-b", tree, deb], check=True, capture_output=True, timeout=60)
        shutil.rmtree(tree)
        digest = hashlib.sha256(deb.read_bytes()).hexdigest()
        self.paragraphs.append(control + f"Filename: pool/{deb.name}\nSize: {deb.stat().st_size}\nSHA256: {digest}\n")
        self.publish()
        return deb

    def publish(self, suite="trixie"):
        packages = "\n".join(self.paragraphs).encode()
        index = self.folder / "dists" / suite / "main/binary-amd64/Packages"
        index.parent.mkdir(parents=True, exist_ok=True)
        index.write_bytes(packages)
        digest = hashlib.sha256(packages).hexdigest()
        (self.folder / "dists" / suite / "Release").write_text(
            f"Suite: {suite}\nCodename: {suite}\nComponents: main\nArchitectures: amd64\n"
            f"SHA256:\n {digest} {len(packages)} main/binary-amd64/Packages\n"
        )

    @property
    def archive(self):
        return Archive(f"copy:{self.folder}", trusted=True)


@pytest.fixture
def mirror(tmp_path):
    made = Mirror(tmp_path / "mirror")
    made.add("helper", files=["usr/lib/helper"])
    made.add("unwanted", files=["usr/lib/unwanted"])
    made.add(
        "tool", version="1:2.0+b~1", depends="helper, unwanted", files=["usr/bin/tool", "usr/share/doc/tool/README"]
    )
    return made


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "cache"


TOOL = Bundle("tool-x", ("tool",), ("trixie",), keep="tool|helper")


def test_packages_and_their_dependencies_are_unpacked(mirror, folder, capsys):
    prefix = bundle(TOOL, archive=mirror.archive, folder=folder)
    assert (prefix / "usr/bin/tool").read_text() == "tool 1:2.0+b~1"
    assert (prefix / "usr/lib/helper").exists()
    assert not (prefix / "usr/lib/unwanted").exists()  # `keep` left it out
    assert not (prefix / "usr/share/doc").exists()
    assert not list(prefix.rglob("*.deb"))
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(":")[1] for line in lines] == [" fetching tool-x (2 packages)"] * 2 + [" unpacking tool-x"] * 2
    assert "\r" not in "".join(lines)


def test_the_second_time_needs_no_mirror(mirror, folder):
    first = bundle(TOOL, archive=mirror.archive, folder=folder)
    shutil.rmtree(mirror.folder)
    assert bundle(TOOL, archive=CLOSED, folder=folder) == first


def test_damage_is_repaired(mirror, folder):
    prefix = bundle(TOOL, archive=mirror.archive, folder=folder)
    (prefix / "usr/bin/tool").write_text("")
    bundle(TOOL, archive=mirror.archive, folder=folder)
    assert (prefix / "usr/bin/tool").read_text() == "tool 1:2.0+b~1"


def test_finish_sees_it_before_anybody_else_and_may_refuse(mirror, folder):
    def refuse(prefix):
        assert (prefix / "usr/bin/tool").exists()
        assert not (folder / TOOL.name).exists()
        raise ValueError("not good")

    with pytest.raises(ValueError, match="not good"):
        bundle(TOOL, archive=mirror.archive, folder=folder, finish=refuse)
    assert not (folder / TOOL.name).exists()


def test_lists_that_have_aged_are_read_again(mirror, folder):
    bundle(TOOL, archive=mirror.archive, folder=folder)
    mirror.add("late", files=["usr/bin/late"])  # the lists that we have do not know it, though they are young
    prefix = bundle(Bundle("late-x", ("late",), ("trixie",)), archive=mirror.archive, folder=folder)
    assert (prefix / "usr/bin/late").exists()


def test_a_changed_package_is_refused(mirror, folder):
    deb = next(mirror.folder.glob("pool/tool*"))
    content = bytearray(deb.read_bytes())
    content[-1] ^= 1
    deb.write_bytes(content)
    with pytest.raises(FetchError, match="tool-x"):
        bundle(TOOL, archive=mirror.archive, folder=folder)
    assert not (folder / TOOL.name).exists()


def test_a_mirror_without_signature_is_refused(mirror, folder):
    with pytest.raises(ArchiveNotTrusted, match="debian-archive-keyring"):
        bundle(TOOL, archive=Archive(mirror.archive.uri), folder=folder)


def test_a_missing_package_names_the_mirror(mirror, folder):
    wanted = Bundle("none", ("no-such-package",), ("trixie",))
    with pytest.raises(PackageMissing, match=r"no-such-package.*UMDEV_MIRROR"):
        bundle(wanted, archive=mirror.archive, folder=folder)


def test_a_missing_suite(mirror, folder):
    with pytest.raises(PackageMissing, match="UMDEV_MIRROR"):
        bundle(Bundle("none", ("tool",), ("buzz",)), archive=mirror.archive, folder=folder)


def test_no_network_says_what_to_do(folder):
    with pytest.raises(NoNetwork, match=r"127\.0\.0\.1:9.*UMDEV_MIRROR.*UMDEV_CACHE.*umdev_testkit\.fetch") as caught:
        bundle(TOOL, archive=CLOSED, folder=folder)
    assert "\n" not in str(caught.value)
    assert not (folder / TOOL.name).exists()


def test_no_network_from_the_machines_sources(folder, monkeypatch, tmp_path):
    monkeypatch.setenv("UMDEV_MIRROR", "http://127.0.0.1:9/debian")
    monkeypatch.setenv("UMDEV_CACHE", str(folder))
    done = subprocess.run(
        [sys.executable, "-m", "umdev_testkit.fetch", "cloud"],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.startswith("umdev: cannot read the package lists from http://127.0.0.1:9/debian")
    assert "Traceback" not in done.stderr


def test_no_apt(folder, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NoApt, match="no apt-get, apt-config, dpkg-deb"):
        bundle(TOOL, archive=CLOSED, folder=folder)


def test_a_bar_for_a_terminal(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setenv("TERM", "xterm")
    screen = Terminal()
    with Progress("things", 4_000_000, screen) as progress:
        progress.update(2_000_000)
    last = screen.getvalue().split("\r")[-1]
    assert last.startswith("things [############################] 100%    4.0 of 4.0 MB  done in")
    assert screen.getvalue().count("\n") == 1


def test_a_bar_stops_where_it_failed(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setenv("TERM", "xterm")
    screen = Terminal()
    progress = Progress("things", 4_000_000, screen)
    progress.__enter__()
    progress.update(1_000_000)
    progress.__exit__(KeyError, KeyError(), None)
    assert " 25% " in screen.getvalue().split("\r")[-1]
    assert screen.getvalue().endswith("failed\n")
