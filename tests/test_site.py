"""The site as a reader meets it, without the network: `make site` runs this.   Else skipped, as without a browser."""

import os
import re
import shutil
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

SITE = Path(os.environ.get("SITE", "")).resolve()
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif("SITE" not in os.environ, reason="make site")
LOOK = """async () => {
    await window.MathJax?.startup?.promise;
    const all = selector => [...document.querySelectorAll(selector)];
    const seen = {links: all("a[href]").map(a => a.href), names: all("[id]").map(e => e.id),
                  wide: Math.max(document.documentElement.scrollWidth,  // cut off at the foot of a page counts too
                                 ...all(".prev-next-info").map(e => e.getBoundingClientRect().right)) - innerWidth,
                  formulas: all(".math").length, typeset: all(".math > mjx-container").length,
                  wrong: all("mjx-merror").length};
    all("pre, code").forEach(e => e.remove());
    return {...seen, text: document.body.innerText};
}"""


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api", reason="pip install playwright, and have Chromium")
    if not CHROMIUM:
        pytest.skip("found no Chromium")
    with sync_api.sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])


@pytest.fixture(scope="module", params=[1200, 400])
def tab(browser, request):
    """A page without the network, which notes the requests and scripts that fail."""
    tab = browser.new_context(viewport={"width": request.param, "height": 900}, offline=True).new_page()
    tab.failed = []
    tab.on("requestfailed", lambda r: tab.failed.append(r.url))
    tab.on("pageerror", lambda e: tab.failed.append(f"{tab.url}: {e}"))
    return tab


@pytest.fixture(scope="module")
def pages(tab):
    """Every page that was made, opened.   -> {path: what LOOK saw}"""
    paths = [p for p in sorted(SITE.rglob("*.html")) if p.name != "index.html" and "_static" not in p.parts]
    return {path: tab.goto(path.as_uri()) and tab.evaluate(LOOK) for path in paths}


def inside(page) -> set[tuple[Path, str]]:
    """Where a page's links lead within the site.   -> (path, name of the place on it, or "")"""
    parts = [urlsplit(link) for link in page["links"]]
    return {(Path(unquote(p.path)), unquote(p.fragment)) for p in parts if p.scheme == "file"}


def test_nothing_is_asked_of_the_network(tab, pages):
    assert len(pages) > 60
    assert tab.failed == []


def test_formulas_are_typeset(pages):
    assert sum(page["formulas"] for page in pages.values()) > 200
    assert [p for p, page in pages.items() if page["typeset"] != page["formulas"] or page["wrong"]] == []
    assert {p: found for p, page in pages.items() if (found := re.findall(r".{0,30}\$.{0,30}", page["text"]))} == {}


def test_no_page_is_wider_than_the_screen(pages):
    assert {path: page["wide"] for path, page in pages.items() if page["wide"] > 0} == {}


def test_links_lead_somewhere(pages):
    for path, page in pages.items():
        for target, name in inside(page):
            assert target.is_file(), (path, target)
            assert not name or target not in pages or name in pages[target]["names"], (path, target, name)


def test_notebooks_lead_to_notebooks_and_to_the_source(pages):
    lessons = [path for path in pages if re.match(r"\d\d_", path.name)]
    assert [p.stem for p in lessons] == [p.stem for p in sorted(Path("notebooks").glob("*.ipynb"))]
    for path in lessons:
        targets = inside(pages[path])
        assert {target for target, _ in targets} > set(lessons)
        assert any(name.startswith("pointseg.") for _, name in targets), path
    losses = SITE / "pointseg/losses.html"
    assert (losses, "pointseg.losses.separation_loss") in inside(pages[SITE / "notebooks/05_separation_loss.html"])
    assert "SOLUTION" not in "".join(path.read_text() for path in pages)


def test_from_the_front_page_search_finds_a_notebook(tab):
    tab.goto((SITE / "index.html").as_uri())
    tab.wait_for_url("**/README.html")
    tab.keyboard.press("Control+k")
    tab.keyboard.type("farthest point\n")
    tab.get_by_role("link", name="06. The extent loss").last.click()
    tab.wait_for_url("**/06_extent_loss.html*")
