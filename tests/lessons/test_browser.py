"""The labelling tool in a real browser, in JupyterLab and Notebook 7.

Needs `pip install playwright` and a Chromium, and `pip install notebook` for the latter, else skipped.
"""

import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request

import nbformat
import numpy as np
import pytest

from pointseg.datasets.manifest import read_manifest
from pointseg.datasets.phantom import write_phantoms

sync_api = pytest.importorskip("playwright.sync_api", reason="pip install playwright, and have Chromium")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(not CHROMIUM, reason="found no Chromium")
WAIT_MS = 120_000
PAGES = {"jupyterlab": "lab/tree", "notebook": "notebooks"}  # by module, below which each shows a notebook


@pytest.fixture(params=PAGES)
def jupyter(request, tmp_path):
    """JupyterLab or Notebook 7 on a folder with a notebook of one cell.   -> the server's address, and the page's"""
    if importlib.util.find_spec(request.param) is None:
        pytest.skip(f"pip install {request.param}")
    cases = read_manifest(write_phantoms(tmp_path / "scans", 1, 0, spacing_mm=4.0))
    source = ("from pointseg.lessons.labeller import Labeller\n"
              f"labeller = Labeller({str(cases[0].image)!r}, 'mine', every=4, seed=1)\nlabeller")
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)], metadata=kernel)
    nbformat.write(notebook, tmp_path / "label.ipynb")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen(
        [sys.executable, "-m", request.param, "--no-browser", "--allow-root", f"--port={port}",
         "--IdentityProvider.token=", "--ServerApp.disable_check_xsrf=True"], cwd=tmp_path,
        env=os.environ | {"JUPYTER_CONFIG_DIR": str(tmp_path / "config")}, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL)
    address = f"http://127.0.0.1:{port}"
    for _ in range(300):
        try:
            urllib.request.urlopen(f"{address}/api", timeout=1)
            break
        except OSError:
            time.sleep(0.2)
    yield address, f"{address}/{PAGES[request.param]}/label.ipynb"
    server.terminate()
    server.wait()


def one_kernel(server: str) -> dict:
    kernel, = json.load(urllib.request.urlopen(f"{server}/api/kernels"))
    return kernel


def is_idle(kernel: dict) -> bool:
    return kernel["connections"] > 0 and kernel["execution_state"] == "idle"


def run_cell(page, server: str, url: str):
    """Open the notebook and run its cell.   -> the picture to click on"""
    page.goto(url, timeout=WAIT_MS)
    assert wait_for(lambda: is_idle(one_kernel(server)), WAIT_MS / 1000)  # before the kernel is there nothing is run
    page.locator(".jp-CodeCell").first.click(timeout=WAIT_MS)
    page.keyboard.press("Shift+Enter")
    picture = page.locator(".jp-OutputArea-output [tabindex='0'] img").first
    picture.wait_for(timeout=WAIT_MS)
    page.get_by_text("keys, while the mouse").first.wait_for(timeout=WAIT_MS)  # the last line: nothing moves any more
    page.wait_for_timeout(2000)
    return picture


def click(page, picture, row: int, column: int, shape: tuple[int, int]) -> None:
    box = picture.bounding_box()
    page.mouse.click(box["x"] + (column + 0.5) / shape[1] * box["width"],
                     box["y"] + (row + 0.5) / shape[0] * box["height"])


def on_disk(folder) -> list[tuple[int, ...]]:
    clicks = read_manifest(folder)[0].read().clicks
    return sorted((x, z, y, v) for (z, y, x), v in zip(clicks.places.tolist(), clicks.values.tolist(), strict=True))


def wait_for(condition, seconds: float = 20) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            if condition():
                return True
        except Exception:  # a file that is not there yet
            pass
        time.sleep(0.2)
    return False


def test_three_slices_undo_and_a_restart_of_the_kernel(jupyter, tmp_path):
    server, url = jupyter
    shape = read_manifest(tmp_path / "scans")[0].read().image.shape
    plane, mine = shape[:2], tmp_path / "mine"
    start = int(np.random.default_rng(1).integers(4))
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1400, "height": 1100})
        picture = run_cell(page, server, url)
        click(page, picture, 10, 12, plane)
        page.keyboard.press("2")
        click(page, picture, 20, 13, plane)
        page.keyboard.press("n")
        page.wait_for_timeout(700)
        page.keyboard.press("5")
        click(page, picture, 30, 5, plane)
        click(page, picture, 31, 6, plane)
        assert wait_for(lambda: len(read_manifest(mine)[0].points.read_text().splitlines()) == 5)
        page.keyboard.press("z")
        first = [(start, 10, 12, 1), (start, 20, 13, 2), (start + 4, 30, 5, 5)]
        assert wait_for(lambda: on_disk(mine) == first), on_disk(mine)
        page.wait_for_timeout(1000)
        if where := os.environ.get("SCREENSHOT"):
            page.screenshot(path=where)
        urllib.request.urlopen(f"{server}/api/kernels/{one_kernel(server)['id']}/restart", data=b"")
        page.wait_for_timeout(2000)
        page.close(run_before_unload=False)
        page = browser.new_page(viewport={"width": 1400, "height": 1100})
        picture = run_cell(page, server, url)
        page.mouse.move(0, 0)
        picture.hover()
        page.keyboard.press("0")
        click(page, picture, 3, 3, plane)
        assert wait_for(lambda: on_disk(mine) == [*first, (start + 8, 3, 3, 0)]), on_disk(mine)
        browser.close()
