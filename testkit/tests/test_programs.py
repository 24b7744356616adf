"""C programs for the guest."""

import subprocess

import pytest
from umdev_testkit.errors import CompileFailed
from umdev_testkit.programs import static_program


@pytest.fixture
def source(tmp_path, monkeypatch):
    monkeypatch.setenv("UMDEV_CACHE", str(tmp_path / "cache"))
    (tmp_path / "answer.h").write_text("#define ANSWER 42\n")
    path = tmp_path / "prog.c"
    path.write_text('#include <stdio.h>\n#include "answer.h"\nint main(void) { printf("%d\\n", ANSWER); return 0; }\n')
    return path


def test_compiled_statically_and_once(source):
    program = static_program(source)
    assert subprocess.run([program], capture_output=True, timeout=20, check=True).stdout == b"42\n"
    assert b"ld-linux" not in program.read_bytes()[:4096]  # no interpreter: static
    made = program.stat().st_mtime_ns
    assert static_program(source) == program
    assert program.stat().st_mtime_ns == made


def test_an_edited_header_or_another_flag_shows(source):
    first = static_program(source)
    (source.parent / "answer.h").write_text("#define ANSWER 43\n")
    second = static_program(source)
    assert first != second
    assert subprocess.run([second], capture_output=True, timeout=20, check=True).stdout == b"43\n"
    assert static_program(source, flags=["-DX"]) != second


def test_a_source_named_from_the_current_folder(source, monkeypatch):
    monkeypatch.chdir(source.parents[1])
    program = static_program(source.relative_to(source.parents[1]))
    assert subprocess.run([program], capture_output=True, timeout=20, check=True).stdout == b"42\n"


def test_what_gcc_says_is_in_the_error(source):
    source.write_text("int main(void) { return undeclared; }\n")
    with pytest.raises(CompileFailed, match="undeclared"):
        static_program(source)


def test_a_missing_gcc_is_named(source, monkeypatch):
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(CompileFailed, match="apt-get install gcc"):
        static_program(source)
