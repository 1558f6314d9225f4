"""Sphinx settings; the pages are Markdown, those of the reference are made from the code."""

import re
import sys
from pathlib import Path

from sphinx.domains.python import PyObject

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

import house_style  # noqa: E402
import reference_pages  # noqa: E402

import lazytiles  # noqa: E402

project = "lazytiles"
author = "lazytiles developers"
copyright = "2026, lazytiles developers"
release = version = lazytiles.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "sphinx_design",
]
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
exclude_patterns = ["_build"]
napoleon_google_docstring = False
napoleon_use_ivar = True
# What is returned is told in sentences here, not as a type.
napoleon_custom_sections = ["Returns", "Yields"]
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_member_order = "groupwise"
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 70
# Where an object is shown by its public name, its own module stays out of the way.
add_module_names = False
toc_object_entries_show_parents = "hide"
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True
html_theme = "furo"
html_title = f"lazytiles {release}"
html_static_path = ["static"]
html_css_files = ["house.css"]


# The names that have a page, with and without the module that they live in.
KNOWN = frozenset(name for names in reference_pages.GROUPS.values() for name in names)


def short(signature):
    """Arrays by NumPy's own short name."""
    plain = re.sub(r"~?\b(?:numpy|typing)\.(?=\w)", "", signature or "")
    return re.sub(r"ndarray\[tuple\[Any, \.\.\.\], dtype\[(\w+)\]\]", r"NDArray[\1]", plain) or signature


def setup(app):
    def read_house_style(app, what, name, obj, options, lines):
        lines[:] = house_style.retold(lines, KNOWN)

    def shorten(app, what, name, obj, options, signature, returned):
        # What calls give back is not made by its class, so how it would be made is nobody's concern.
        if what == "class" and name.removeprefix("lazytiles.") in reference_pages.GIVEN_BACK:
            return "", None
        return short(signature), short(returned)

    def end_blocks(app, name, source):
        # The blank line in front of a fence is for doctest, which would read on, and not for the eye.
        source[0] = re.sub(r"\n\n```$", "\n```", source[0], flags=re.MULTILINE)

    app.connect("source-read", end_blocks)
    # Napoleon listens at the usual priority of 500.
    app.connect("autodoc-process-docstring", read_house_style, priority=400)
    app.connect("autodoc-process-signature", shorten)
    for field in PyObject.doc_field_types:
        field.label = {"variable": "Attributes"}.get(field.name, field.label)
    app.connect("builder-inited", lambda app: reference_pages.write(HERE / "reference"))
