"""Sphinx configuration: Furo, MyST, four folders as Diataxis has them."""

import importlib.metadata

from sphinx.ext.napoleon import Config, GoogleDocstring

project = "umdev"
copyright = "the umdev authors"  # noqa: A001 Sphinx's name for it
version = release = importlib.metadata.version("umdev")

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.viewcode",
    "sphinx_click",
    "sphinx_copybutton",
]
exclude_patterns = ["_build", "tests"]
html_theme = "furo"
html_title = f"umdev {release}"
smartquotes = False  # it would make a dash of the two hyphens before an option's name

myst_enable_extensions = ["deflist"]
myst_heading_anchors = 3
copybutton_prompt_text = r"\$ |> "
copybutton_prompt_is_regexp = True

autodoc_default_options = {"members": True, "member-order": "bysource", "show-inheritance": True}
autodoc_typehints = "description"
autodoc_typehints_format = "short"


def read_sections(app, what, name, obj, options, lines):
    """Napoleon's sections, such as Raises. The extension as a whole would also take an attribute's text up to a colon
    for its type.
    """
    if what not in ("attribute", "property", "data"):
        lines[:] = GoogleDocstring(list(lines), Config(), what=what, name=name, obj=obj, options=options).lines()


def keep_indented_blocks(app, what, name, obj, options, lines):
    """Docstrings are plain text: what stands indented after an empty line is code or a tree, not a quotation."""
    result, literal = [], False
    for line in lines:
        indented = line.startswith("    ")
        if indented and not literal and result and not result[-1]:
            result += ["::", ""]
        if line:
            literal = indented and (literal or not result[-1])
        result.append(line)
    lines[:] = result


def setup(app):
    app.connect("autodoc-process-docstring", read_sections)
    app.connect("autodoc-process-docstring", keep_indented_blocks, priority=900)  # of what read_sections leaves
