"""The code blocks of the documentation, executed page by page as a reader would.

A page is one session in an empty folder: its Python blocks share one module, its console blocks run in bash. A comment
on the line before a block says how to treat it:

    <!-- test: file NAME -->     the block is the content of that file
    <!-- test: guest -->         it boots a real guest
    <!-- test: not run, REASON -->

Where a console block shows output, that must come; `...` stands for anything.
"""

import doctest
import importlib
import os
import re
import subprocess
import sys
import tempfile
import types
from dataclasses import dataclass
from pathlib import Path

import pytest
from umdev.device import Access

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/tutorial/*.md")), *sorted(ROOT.glob("docs/how-to/*.md"))]
BLOCK = re.compile(
    r"(?:^<!-- test: (?P<mark>[^\n]+?) -->\n)?^```(?P<language>[\w-]+)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL
)
DIRECTIVE = re.compile(r"^```\{.*?^```$", re.MULTILINE | re.DOTALL)
EXECUTED = {"python", "console"}
COMMAND_SECONDS = 120


@dataclass(frozen=True)
class Block:
    page: Path
    line: int
    language: str
    text: str
    mark: str

    @property
    def guest(self):
        return self.mark == "guest"

    def __str__(self):
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(page):
    text = page.read_text()
    return [
        Block(page, text.count("\n", 0, match.start("text")) + 1, match["language"], match["text"], match["mark"] or "")
        for match in BLOCK.finditer(text)
    ]


def names(pages):
    return [str(page.relative_to(ROOT)) for page in pages]


GUEST_PAGES = [page for page in PAGES if any(block.guest for block in blocks(page))]


def test_there_are_pages():
    assert {page.parent.name for page in PAGES} == {ROOT.name, "tutorial", "how-to"}


def test_every_block_says_what_it_is():
    for page in PAGES:
        fences = re.findall(r"^```(?!\{)[\w-]*$", DIRECTIVE.sub("", page.read_text()), re.MULTILINE)
        assert len(fences) == 2 * len(blocks(page)), f"{page}: a fence without a language"
        for block in blocks(page):
            kind = block.mark.split()[0] if block.mark else ""
            assert kind in ("", "file", "guest", "not"), f"{block}: {block.mark!r}"
            assert block.language in EXECUTED or kind in ("file", "not"), f"{block}: nothing executes {block.language}"


DOCUMENTED = re.compile(
    r"^\.\. (?P<kind>currentmodule|automodule|auto(?:class|data|function)):: (?P<name>[\w.]+)\n"
    r"(?P<options>(?: +:.*\n)*)",
    re.MULTILINE,
)


def documented():
    """What the reference documents, one by one or with its whole module: pairs of a name and the object's id."""
    found = set()
    for path in ROOT.glob("docs/reference/*.md"):
        module = None
        for match in DOCUMENTED.finditer(path.read_text()):
            if match["kind"] == "currentmodule":
                module = importlib.import_module(match["name"])
            elif match["kind"] == "automodule":
                whole = importlib.import_module(match["name"])
                if ":no-members:" not in match["options"]:
                    found.update((name, id(value)) for name, value in vars(whole).items())
            else:
                prefix, _, name = match["name"].rpartition(".")
                owner = importlib.import_module(prefix) if prefix else module
                found.add((name, id(getattr(owner, name))))
    return found | {(name, id(value)) for name, value in Access.__members__.items()}


FACES = (
    "umdev.device",
    "umdev.bus",
    "umdev.hypervisor",
    "umdev.driver",
    "umdev.loopback",
    "umdev.plugins",
    "umdev_cli.client",
    "umdev_kvm",
    "umdev_softgpu",
    "umdev_testkit.bench",
    "umdev_testkit.conformance",
    "umdev_testkit.fixtures",
    "umdev_testkit.payloads",
    "umdev_testkit.programs",
    "umdev_vfio_user",
    "umdev_xen",
)


@pytest.mark.parametrize("face", FACES)
def test_the_reference_has_every_public_name(face):
    module = importlib.import_module(face)
    names = {(name, id(getattr(module, name))) for name in module.__all__}
    assert {name for name, _ in names - documented()} == set()


def test_the_reference_has_every_fixture_and_marker():
    page = (ROOT / "docs/reference/fixtures.md").read_text()
    plugin = Path(importlib.import_module("umdev_testkit.plugin").__file__).read_text()
    fixtures = re.findall(r"^@pytest\.fixture.*?^def (\w+)\(", plugin, re.MULTILINE | re.DOTALL)
    markers = re.findall(r'"markers", "(\w+):', plugin)
    assert len(fixtures) >= 9
    assert len(markers) >= 3
    assert [name for name in fixtures + markers if f"\n| `{name}` |" not in page] == []


def test_the_reference_has_every_environment_variable():
    page = (ROOT / "docs/reference/environment.md").read_text()
    sources = [path for pattern in ("*/src", "plugins/*/src") for path in ROOT.glob(f"{pattern}/**/*.py")]
    variables = {name for path in sources for name in re.findall(r'"(UMDEV_[A-Z_]+)"', path.read_text())}
    assert "UMDEV_PLUGINS" in variables
    assert {name for name in variables if f"\n| `{name}` |" not in page} == set()


@pytest.mark.parametrize("page", PAGES, ids=names(PAGES))
def test_page(page, session):
    for block in blocks(page):
        if not block.guest:
            session.run(block)


@pytest.mark.guest
@pytest.mark.timeout(600)
@pytest.mark.parametrize("page", GUEST_PAGES, ids=names(GUEST_PAGES))
def test_page_with_guest(page, session):
    for block in blocks(page):
        session.run(block)


class Session:
    def __init__(self, folder):
        self.folder = folder
        self.module = types.ModuleType("umdev_page")

    def run(self, block):
        kind, _, rest = block.mark.partition(" ")
        if kind == "not":
            return
        if kind == "file":
            path = self.folder / rest
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block.text)
        elif block.language == "python":
            code = compile("\n" * (block.line - 1) + block.text, str(block.page), "exec", dont_inherit=True)
            exec(code, vars(self.module))
        else:
            self.console(block)

    def console(self, block):
        """Each `$ ` line is a command (`> ` goes on with it), what follows is its output."""
        for command in re.split(r"^\$ ", block.text, flags=re.MULTILINE)[1:]:
            lines = command.splitlines(keepends=True)
            more = [line.startswith("> ") for line in lines[1:]]
            length = 1 + (more.index(False) if False in more else len(more))
            script = lines[0] + "".join(line[2:] for line in lines[1:length])
            wanted = "".join(lines[length:])
            done = subprocess.run(
                ["bash", "-euo", "pipefail", "-c", script],
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=COMMAND_SECONDS,
                check=False,
            )
            assert done.returncode == 0, f"{block}: {script}{done.stdout}"
            if wanted.strip():
                matches = doctest.OutputChecker().check_output
                assert matches(wanted, done.stdout, doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE), (
                    f"{block}: {script}wanted:\n{wanted}got:\n{done.stdout}"
                )


@pytest.fixture
def session(tmp_path, monkeypatch):
    """A folder of its own, private configuration and runtime folders, and this environment's programs first."""
    page = Session(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.delenv("PYTHONPATH", raising=False)  # a reader's commands don't find the page's folder by themselves
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setitem(sys.modules, "umdev_page", page.module)
    with tempfile.TemporaryDirectory(prefix="umdev-") as short:  # a unix socket's path has 107 bytes at most
        for name in ("RUNTIME", "CONFIG"):
            folder = Path(short, name.lower())
            folder.mkdir(mode=0o700)
            monkeypatch.setenv(f"UMDEV_{name}_DIR", str(folder))
        yield page
    for name in [name for name, module in sys.modules.items() if _lives_in(module, tmp_path)]:
        del sys.modules[name]


def _lives_in(module, folder):
    return str(getattr(module, "__file__", None) or "").startswith(str(folder))
