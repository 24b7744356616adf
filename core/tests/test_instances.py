"""Claims across processes and the private runtime directory."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import threading
import uuid
from pathlib import Path

import pytest
from umdev import runtime
from umdev.errors import Conflict, InvalidArgument, NoInstanceLeft, StateError
from umdev.instances import Claimed, InstanceClaims

A, B, C = (str(uuid.UUID(int=number)) for number in (1, 2, 3))

HOLDER = """
import sys, time
from pathlib import Path
from umdev.instances import InstanceClaims
claim = InstanceClaims(Path(sys.argv[1])).claim("mtty", "mtty-2", sys.argv[2], 2, 24)
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("UMDEV_RUNTIME_DIR", "UMDEV_CONFIG_DIR", "XDG_RUNTIME_DIR", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "run"


@pytest.fixture
def claims(directory: Path) -> InstanceClaims:
    return InstanceClaims(directory)


def holder(directory: Path, identity: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(directory), identity],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "ready\n"
    return process


def end(process: subprocess.Popen[str]) -> None:
    process.stdin.close()
    process.wait(10)
    process.stdout.close()


class TestClaims:
    def test_units_are_counted_and_given_back(self, claims: InstanceClaims) -> None:
        one = claims.claim("mtty", "mtty-1", A, 1, 3)
        two = claims.claim("mtty", "mtty-2", B, 2, 3)
        assert claims.used("mtty") == {
            A: Claimed("mtty", "mtty-1", 1, os.getpid()),
            B: Claimed("mtty", "mtty-2", 2, os.getpid()),
        }
        with pytest.raises(NoInstanceLeft) as caught:
            claims.claim("mtty", "mtty-1", C, 1, 3)
        for named in ("mtty has no instance of mtty-1 left", "3 are in use", A, B, f"process {os.getpid()}"):
            assert named in str(caught.value)
        two.close()
        two.close()
        with claims.claim("mtty", "mtty-1", C, 1, 3):
            assert set(claims.used("mtty")) == {A, C}
        one.close()
        assert claims.used("mtty") == {}

    def test_parents_do_not_share_capacity(self, claims: InstanceClaims) -> None:
        with claims.claim("a", "t", A, 1, 1), claims.claim("b", "t", B, 1, 1):
            assert list(claims.used("a")) == [A]
            assert list(claims.used()) == [A, B]

    def test_a_uuid_is_unique_over_all_parents(self, claims: InstanceClaims) -> None:
        with (
            claims.claim("a", "t", A, 1, 9),
            pytest.raises(Conflict, match=f"{A} is in use: t of a in process") as caught,
        ):
            claims.claim("b", "t", A, 1, 9)
        assert not isinstance(caught.value, NoInstanceLeft)
        claims.claim("b", "t", A, 1, 9).close()

    @pytest.mark.parametrize("identity", ["", "../../etc/passwd", A.replace("-", ""), "A" * 36, f"{A}\n", f"{{{A}}}"])
    def test_malformed_uuid(self, claims: InstanceClaims, directory: Path, identity: str) -> None:
        with pytest.raises(InvalidArgument, match="canonical form"):
            claims.claim("a", "t", identity, 1, 1)
        assert not directory.exists()

    def test_no_units(self, claims: InstanceClaims) -> None:
        with pytest.raises(InvalidArgument, match="at least one unit"):
            claims.claim("a", "t", A, 0, 1)

    def test_a_type_larger_than_its_parent(self, claims: InstanceClaims) -> None:
        with pytest.raises(NoInstanceLeft, match="takes 5 of 4 units, 0 are in use"):
            claims.claim("a", "t", A, 5, 4)

    def test_nothing_is_left_behind(self, claims: InstanceClaims, directory: Path) -> None:
        claims.claim("a", "t", A, 1, 1).close()
        assert not directory.exists()

    def test_a_directory_that_the_user_names_stays(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("UMDEV_RUNTIME_DIR", str(directory))
        InstanceClaims().claim("a", "t", A, 1, 1).close()
        assert list(directory.iterdir()) == []

    def test_a_deleted_runtime_directory_does_no_harm(self, claims: InstanceClaims, directory: Path) -> None:
        import shutil

        lost = claims.claim("a", "t", A, 1, 1)
        shutil.rmtree(directory)
        assert claims.used() == {}
        with claims.claim("a", "t", A, 1, 1):
            lost.close()  # must not take the new owner's file away
            assert list(claims.used()) == [A]

    def test_threads_never_get_more_than_there_is(self, claims: InstanceClaims) -> None:
        won, refused = [], []

        def contend() -> None:
            for _ in range(5):
                try:
                    won.append(claims.claim("a", "t", str(uuid.uuid4()), 1, 7))
                except NoInstanceLeft as error:
                    refused.append(error)

        threads = [threading.Thread(target=contend) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert (len(won), len(refused)) == (7, 13)
        for claim in won:
            claim.close()


class TestProcesses:
    def test_another_process_counts(self, claims: InstanceClaims, directory: Path) -> None:
        process = holder(directory, A)
        try:
            assert claims.used("mtty") == {A: Claimed("mtty", "mtty-2", 2, process.pid)}
            with pytest.raises(Conflict, match=f"in process {process.pid}"):
                claims.claim("mtty", "mtty-1", A, 1, 24)
        finally:
            end(process)
        assert claims.used("mtty") == {}

    def test_what_the_killed_leave_is_removed(self, claims: InstanceClaims, directory: Path) -> None:
        process = holder(directory, A)
        process.send_signal(signal.SIGKILL)
        end(process)
        assert (directory / "instances" / A).exists()
        assert claims.used() == {}
        assert not directory.exists()

    def test_a_killed_ones_uuid_is_free(self, claims: InstanceClaims, directory: Path) -> None:
        process = holder(directory, A)
        process.send_signal(signal.SIGKILL)
        end(process)
        with claims.claim("mtty", "mtty-1", A, 1, 1):
            assert claims.used("mtty")[A].pid == os.getpid()


class TestRuntimeDirectory:
    def test_is_private(self, claims: InstanceClaims, directory: Path) -> None:
        with claims.claim("a", "t", A, 1, 1):
            assert stat.S_IMODE(directory.stat().st_mode) == 0o700
            assert stat.S_IMODE((directory / "instances" / A).stat().st_mode) == 0o600

    def test_readable_by_others_is_narrowed(self, directory: Path) -> None:
        directory.mkdir(mode=0o755)
        with runtime.locked(directory):
            assert stat.S_IMODE(directory.stat().st_mode) == 0o700

    def test_writable_by_others_is_refused(self, directory: Path) -> None:
        directory.mkdir()
        directory.chmod(0o777)
        with pytest.raises(StateError, match="can be written by others"), runtime.locked(directory):
            pass

    def test_a_link_or_a_file_is_refused(self, tmp_path: Path, directory: Path) -> None:
        (tmp_path / "elsewhere").mkdir()
        directory.symlink_to(tmp_path / "elsewhere")
        with pytest.raises(StateError, match="not a link or a file"), runtime.locked(directory):
            pass
        directory.unlink()
        directory.write_text("")
        with pytest.raises(StateError, match="not a link or a file"), runtime.locked(directory):
            pass

    @pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory to someone else; run as root")
    def test_someone_elses_is_refused(self, directory: Path) -> None:
        directory.mkdir()
        os.chown(directory, 12345, -1)
        with pytest.raises(StateError, match="belongs to user 12345"), runtime.locked(directory):
            pass

    def test_the_lock_excludes_and_says_so(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(runtime, "_LOCK_SECONDS", 0.05)
        with (
            runtime.locked(directory),
            pytest.raises(StateError, match="locked by another process"),
            runtime.locked(directory),
        ):
            pass

    def test_where_it_is(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(os, "geteuid", lambda: 4711)
        assert runtime.runtime_directory() == Path("/tmp/umdev-4711")
        monkeypatch.setattr(os, "geteuid", lambda: 0)
        assert runtime.runtime_directory() == Path("/run/umdev")
        monkeypatch.undo()
        monkeypatch.delenv("UMDEV_RUNTIME_DIR", raising=False)
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
        assert runtime.runtime_directory() == tmp_path / "umdev"
        monkeypatch.setattr(os, "geteuid", lambda: 4711)  # a session directory inherited from another user
        assert runtime.runtime_directory() == Path("/tmp/umdev-4711")
        monkeypatch.setenv("UMDEV_RUNTIME_DIR", "/x/y")
        assert runtime.runtime_directory() == Path("/x/y")

    def test_where_definitions_are(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(os, "geteuid", lambda: 0)
        assert runtime.config_directory() == Path("/etc/umdev.d")
        monkeypatch.setattr(os, "geteuid", lambda: 4711)
        assert runtime.config_directory() == Path.home() / ".config" / "umdev"
        monkeypatch.setenv("XDG_CONFIG_HOME", "/cfg")
        assert runtime.config_directory() == Path("/cfg/umdev")
        monkeypatch.setenv("UMDEV_CONFIG_DIR", "/x/y")
        assert runtime.config_directory() == Path("/x/y")


def test_a_forked_childs_close_leaves_the_claim(directory: Path, claims: InstanceClaims) -> None:
    program = (
        "import os, sys; from pathlib import Path; from umdev.instances import InstanceClaims; "
        "claims = InstanceClaims(Path(sys.argv[1])); "
        f"claim = claims.claim('mtty', 'mtty-1', '{A}', 1, 24); "
        "child = os.fork(); "
        "child or (claim.close(), os._exit(0)); "
        "assert os.waitpid(child, 0)[1] == 0; "
        f"assert list(claims.used()) == ['{A}']; "
        "claim.close(); assert not claims.used()"
    )
    subprocess.run([sys.executable, "-c", program, str(directory)], check=True, timeout=60)
