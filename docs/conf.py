"""The documentation's settings."""

from __future__ import annotations

import sys
from pathlib import Path

import mikit

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

project = "mikit"
author = "The mikit developers"
copyright = "2026, the mikit developers"
release = version = mikit.__version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinxcontrib.bibtex",
    "myst_nb",
    "mikit_pages",
]
source_suffix = {".md": "myst-nb", ".ipynb": "myst-nb", ".rst": "restructuredtext"}
exclude_patterns = ["_build", "_ext", "tables", "gallery", "**.ipynb_checkpoints", "README.md"]
bibtex_bibfiles = ["references.bib"]
myst_enable_extensions = ["dollarmath", "deflist", "colon_fence", "attrs_inline"]
myst_heading_anchors = 3
smartquotes = False

autodoc_typehints = "description"
# The types of documented arguments only: with all, every docstring with a section after Raises lists them twice.
autodoc_typehints_description_target = "documented"
autodoc_member_order = "bysource"
autodoc_default_options = {"show-inheritance": False}
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_custom_sections = ["Formula", "Shapes", "Unit", "Units", "Kind", "Checks", "Cost", "Pitfalls", "Source"]

nb_execution_mode = "force"
nb_execution_timeout = 300
nb_execution_raise_on_error = True
nb_execution_in_temp = True
nb_merge_streams = True

html_theme = "furo"
html_title = f"mikit {release}"
html_static_path: list[str] = ["_static"]
html_css_files = ["tables.css"]
