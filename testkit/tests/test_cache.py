"""Entries of the cache are complete or absent, whoever is killed and whoever else looks."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from umdev_testkit import cache
from umdev_testkit.errors import CacheLocked, CacheUnusable, DiskFull


def fill_with(text):
    def fill(folder):
        (folder / "sub").mkdir()
        (folder / "sub/file").write_text(text)
        (folder / "link").symlink_to("nowhere")

    return fill


def refuse(folder):
    raise AssertionError("the entry was filled again")


def test_folder_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("UMDEV_CACHE", str(tmp_path / "own"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache.cache_folder() == tmp_path / "own"
    monkeypatch.delenv("UMDEV_CACHE")
    assert cache.cache_folder() == tmp_path / "xdg/umdev"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache.cache_folder() == tmp_path / ".cache/umdev"


def test_an_entry_is_filled_once(tmp_path):
    first = cache.entry("thing", fill_with("hello"), folder=tmp_path)
    assert (first / "sub/file").read_text() == "hello"
    assert cache.entry("thing", refuse, folder=tmp_path) == first


def test_an_intact_entry_needs_no_write_access(tmp_path):
    cache.entry("thing", fill_with("hello"), folder=tmp_path)
    (tmp_path / "lock").unlink()
    cache.entry("thing", refuse, folder=tmp_path)
    assert not (tmp_path / "lock").exists()


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "sub/file").unlink(),
        lambda folder: (folder / "sub/file").write_text("hell"),
        lambda folder: (folder / cache.MANIFEST).unlink(),
        lambda folder: (folder / cache.MANIFEST).write_text("{"),
        lambda folder: (folder / cache.MANIFEST).write_text("[]"),
        lambda folder: (folder / cache.MANIFEST).write_text('{"files": 3}'),
    ],
)
def test_a_damaged_entry_is_filled_again(tmp_path, capsys, damage):
    folder = cache.entry("thing", fill_with("hello"), folder=tmp_path)
    damage(folder)
    cache.entry("thing", fill_with("again"), folder=tmp_path)
    assert (folder / "sub/file").read_text() == "again"
    assert "damaged" in capsys.readouterr().err


def test_a_failed_filling_leaves_nothing(tmp_path):
    def fail(folder):
        (folder / "half").write_text("x")
        raise RuntimeError("no more")

    with pytest.raises(RuntimeError, match="no more"):
        cache.entry("thing", fail, folder=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["lock"]


CHILD = """
import os, sys, time
from pathlib import Path
from umdev_testkit import cache
def fill(folder):
    (folder / "half").write_text("half")
    print("filling", flush=True)
    sys.stdin.readline()
    (folder / "file").write_text("from the child")
cache.entry("thing", fill, folder=Path(sys.argv[1]))
"""


@pytest.fixture
def filling(tmp_path):
    """Another process that is in the middle of filling the entry; a line on its stdin lets it finish."""
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert child.stdout.readline() == "filling\n"
    yield child
    child.kill()
    child.communicate(timeout=60)


def test_a_busy_cache_names_the_process(tmp_path, filling, capsys):
    with pytest.raises(CacheLocked, match=rf"process {filling.pid} .*UMDEV_CACHE"):
        cache.entry("thing", refuse, folder=tmp_path, wait=0.3)
    assert not (tmp_path / "thing").exists()
    assert f"waiting for process {filling.pid}" in capsys.readouterr().err


def test_the_second_process_takes_what_the_first_one_made(tmp_path, filling):
    filling.stdin.write("\n")
    filling.stdin.flush()
    folder = cache.entry("thing", refuse, folder=tmp_path, wait=30)
    assert (folder / "file").read_text() == "from the child"


def test_a_killed_process_leaves_no_lock_and_no_half_entry(tmp_path, filling):
    os.kill(filling.pid, signal.SIGKILL)
    filling.wait(60)
    folder = cache.entry("thing", fill_with("ours"), folder=tmp_path, wait=10)
    assert not (folder / "half").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lock", "thing"]


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CacheUnusable, match=r"UMDEV_CACHE"):
        cache.entry("thing", refuse, folder=tmp_path / "file/below")


FULL = """
import sys
from pathlib import Path
from umdev_testkit import cache
from umdev_testkit.errors import DiskFull
try:
    cache.entry("thing", lambda folder: (folder / "big").write_bytes(bytes(1 << 20)), folder=Path(sys.argv[1]))
except DiskFull as error:
    print(error, sorted(path.name for path in Path(sys.argv[1]).iterdir()))
"""


def test_a_full_disk_says_so_and_keeps_nothing(tmp_path):
    small = tmp_path / "small"
    small.mkdir()
    script = f'mount -t tmpfs -o size=256k tmpfs {small} && exec {sys.executable} -c "$1" {small}'
    done = subprocess.run(
        ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script, "sh", FULL],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    if "unshare" in done.stderr:
        pytest.skip(f"needs user namespaces (sysctl kernel.unprivileged_userns_clone=1): {done.stderr.strip()}")
    assert done.stdout == f"no room left in {small}: free some, or name another folder in $UMDEV_CACHE ['lock']\n"


def test_locked_is_exclusive_between_threads_too(tmp_path):
    with cache.locked(tmp_path), pytest.raises(CacheLocked), cache.locked(tmp_path, wait=0):
        pass
    assert Path(tmp_path / "lock").exists()
    assert DiskFull.errno == 28
