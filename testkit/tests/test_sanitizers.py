"""C under the sanitizers: what is found fails, what can't be done is a named error."""

import pytest
from umdev_testkit.errors import CompileFailed, SanitizerMissing
from umdev_testkit.sanitizers import run_sanitized

LEAK = "#include <stdlib.h>\nvoid *volatile kept;\nint main(void) { kept = malloc(8); kept = 0; return 0; }\n"
RACE = """
#include <pthread.h>
static int count;
static void *add(void *unused) { for (int i = 0; i < 1000; i++) count++; return unused; }
int main(void)
{
    pthread_t other;
    pthread_create(&other, 0, add, 0);
    add(0);
    return pthread_join(other, 0);
}
"""


@pytest.fixture
def run(tmp_path):
    def go(sanitizer, text):
        source = tmp_path / "test.c"
        source.write_text(text)
        return run_sanitized(sanitizer, [source], tmp_path)

    return go


@pytest.mark.parametrize(
    ("sanitizer", "text", "found"),
    [("address", LEAK, "LeakSanitizer"), ("thread", RACE, "data race")],
)
def test_what_is_found_ends_the_program(run, sanitizer, text, found):
    done = run(sanitizer, text)
    assert done.returncode not in (0, 77)
    assert found in done.stderr


def test_a_warning_is_an_error(run):
    with pytest.raises(CompileFailed, match="unused variable"):
        run("address", "int main(void) { int unused; return 0; }\n")


def test_without_a_compiler(run, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(SanitizerMissing, match="install gcc"):
        run("address", "")


def test_a_program_may_say_that_it_can_not_run(run_sanitized, tmp_path):
    source = tmp_path / "test.c"
    source.write_text('#include <stdio.h>\nint main(void) { fputs("no card", stderr); return 77; }\n')
    with pytest.raises(pytest.skip.Exception, match="no card"):
        run_sanitized([source])
