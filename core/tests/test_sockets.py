"""What is asked of a socket's file, and that nobody notices."""

import socket
import tempfile
from pathlib import Path

import pytest
from umdev.sockets import is_dead_socket


@pytest.fixture
def path():
    """In a folder of its own with a short name: a unix socket's path has 107 bytes at most."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder) / "a.sock"


def test_a_socket_lives_as_long_as_somebody_has_it(path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as server:
        server.bind(str(path))
        assert not is_dead_socket(path)  # about to listen
        server.listen()
        assert not is_dead_socket(path)
    assert is_dead_socket(path)


def test_who_listens_gets_no_client_by_the_question(path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as server:
        server.bind(str(path))
        server.listen()
        server.setblocking(False)
        assert not is_dead_socket(path)
        with pytest.raises(BlockingIOError):
            server.accept()


def test_what_is_no_socket_is_not_dead(path):
    assert not is_dead_socket(path)
    path.touch()
    assert not is_dead_socket(path)
    assert not is_dead_socket(path.with_name("x" * 120))
