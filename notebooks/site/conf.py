"""How Sphinx makes the site: `make site`.   The pages are the notebooks, the READMEs and the modules' source."""

import itertools
import re
import textwrap
from pathlib import Path

from sphinx.pycode import ModuleAnalyzer

ROOT = Path(__file__).parents[2]

project = html_title = "pointseg"
author = "the pointseg authors"
extensions = ["myst_nb", "sphinx_external_toc", "sphinx.ext.mathjax", "sphinx-mathjax-offline", "sphinx_codeautolink"]
source_suffix = {".md": "myst-nb", ".ipynb": "myst-nb", ".py": "restructuredtext"}
include_patterns = ["README.md", "*/README.md", "notebooks/*.ipynb", "pointseg/**.py"]
exclude_patterns = [".*", "out", "build", "data/[!R]*", "notebooks/course",
                    *(str(p.relative_to(ROOT)) for p in ROOT.glob("pointseg/**/*.py") if not p.stat().st_size)]
external_toc_path = "notebooks/site/toc.yml"

nb_execution_mode = "off"  # the saved outputs
nb_merge_streams = True
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 4
codeautolink_concat_default = True  # a cell knows what the cells above it import

html_theme = "sphinx_book_theme"
html_theme_options = {"navbar_persistent": []}  # one search box is enough
html_static_path = ["style.css"]
html_css_files = ["style.css"]
html_use_index = html_domain_indices = False
html_show_search_summary = False  # a page opened as a file may not read other files


def source_page(module: str, text: str) -> str:
    """A module's source, cut at its functions and classes so that links can lead to them.   -> reStructuredText"""
    tags = ModuleAnalyzer.for_string(text, module).find_tags()  # name: (def, class or other, first line, last line)
    cuts = sorted((first, kind.replace("def", "function"), name) for name, (kind, first, _) in tags.items()
                  if "." not in name and kind in ("def", "class"))
    page = [module, "=" * len(module), f"\n.. py:module:: {module}\n"]
    for (first, kind, name), (end, *_) in itertools.pairwise([(1, "", ""), *cuts, (None, "", "")]):
        code = "\n".join(text.splitlines()[first - 1:end and end - 1]).strip()
        page += [f".. py:{kind}:: {name}\n   :no-typesetting:\n"] if name else []
        page += [f".. code-block:: python\n\n{textwrap.indent(code, '   ')}\n"] if code else []
    return "\n".join(page)


def small_anchor(link: str) -> str:
    """](page#Words) -> ](page#words)"""
    page, _, anchor = link.partition("#")
    return f"{page}#{anchor.lower()}"


def read(app, docname: str, content: list[str]) -> None:
    if docname.startswith("pointseg/"):
        module = docname.removesuffix("/__init__").replace("/", ".")
        content[0] = source_page(module, content[0])
    # Jupyter's names of headings keep capitals, here as on GitHub they have none.
    content[0] = re.sub(r"\]\([^()\s]*#[^()\s]+\)", lambda link: small_anchor(link[0]), content[0])
    # The assignments hold their solutions: named, but not shown.
    content[0] = re.sub(r"\[([^]]*)\]\([^)]*course/source/[^)]*\)", r"\1", content[0])


def setup(app):
    app.connect("source-read", read)
