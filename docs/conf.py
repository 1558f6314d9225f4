"""Sphinx settings; the pages are Markdown."""

import re

import lazytiles

project = "lazytiles"
author = "lazytiles developers"
copyright = "2026, lazytiles developers"
release = version = lazytiles.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
exclude_patterns = ["_build"]
napoleon_google_docstring = False
autodoc_typehints = "none"
autodoc_member_order = "bysource"
html_theme = "furo"
html_title = f"lazytiles {release}"
napoleon_use_ivar = True


def read_house_style(app, what, name, obj, options, lines):
    """Take what follows ``name :`` for a description, which Napoleon would take for a type; a star is a star."""
    told = []
    for line in lines:
        entry = re.fullmatch(r"([\w*]+(?:, [\w*]+)*) : (.+)", line)
        told += [entry[1], f"    {entry[2]}"] if entry else [line]
    lines[:] = [re.sub(r"``.*?``|`.*?`|\*(?=\w)", lambda m: r"\*" if m[0] == "*" else m[0], line) for line in told]


def setup(app):
    # Napoleon listens at the usual priority of 500.
    app.connect("autodoc-process-docstring", read_house_style, priority=400)
