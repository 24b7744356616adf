"""The built reference, which `tox -e docs` names in $UMDEV_BUILT_DOCS: what a reader sees of docstrings and options."""

import ast
import html
import os
import re
from pathlib import Path

import pytest
from umdev_cli.lazy import BUILTIN

TYPE = re.compile(r'<dt class="field-\w+">Type<span.*?</dt>\s*<dd[^>]*>(.*?)</dd>', re.DOTALL)


@pytest.fixture
def reference():
    assert "UMDEV_BUILT_DOCS" in os.environ, "name the folder of the built HTML in UMDEV_BUILT_DOCS, or run tox -e docs"
    return Path(os.environ["UMDEV_BUILT_DOCS"], "reference")


def plain(fragment):
    return html.unescape(re.sub(r"<[^>]+>", "", fragment)).strip()


def test_what_stands_as_a_type_is_one(reference):
    types = [(page.name, plain(found)) for page in reference.glob("*.html") for found in TYPE.findall(page.read_text())]
    for page, text in types:
        try:
            ast.parse(text, mode="eval")
        except SyntaxError:
            pytest.fail(f"{page}: {text!r} is no type")


def test_each_command_has_its_name_for_a_heading(reference):
    headings = [plain(found) for found in re.findall(r"<h\d>(.*?)<a ", (reference / "cli.html").read_text())]
    assert set(BUILTIN) <= set(headings)
    assert "command" not in headings


def test_options_keep_their_hyphens(reference):
    text = plain((reference / "cli.html").read_text())
    assert " --" in text
    assert "\N{EN DASH}" not in text
