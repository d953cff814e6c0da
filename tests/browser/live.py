"""Interactive views, operated as a person would: JupyterLab in a browser, its controls moved by script.

Not collected by `make test` (no `test_` in the file's name): it needs Chromium. `make browser` runs it, on
outputs that it makes with the preset `smoke`, or on those below the folder named by BROWSER_OUTPUTS.
Pictures of every view, before and after, go to the folder named by SCREENSHOTS.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell
from playwright.sync_api import Browser, Locator, Page, sync_playwright

from uniego_utils.pipeline.runner import run_notebook
from uniego_utils.report.page import write_page

PROJECT = Path(__file__).parents[2]
DATASET = "mocap"
VIEW = ("explore(", "explore_mixture(")  # how a cell with an interactive view calls it
PHONE = {"width": 390, "height": 844}  # CSS pixels
START, RUN, REDRAW = 120_000, 420_000, 90_000  # ms: JupyterLab's start, all cells of a notebook, one view
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync"]
STATUS = "() => window.jupyterapp?.shell?.currentWidget?.sessionContext?.session?.kernel?.status"
# Kernel idle and every code cell run: [done, the errors so far].
STATE = """() => {
    const panel = window.jupyterapp.shell.currentWidget, cells = [...panel.content.model.cells];
    const code = cells.filter(cell => cell.type === 'code');
    const outputs = code.flatMap(cell => cell.outputs.toJSON());
    const errors = outputs.filter(output => output.output_type === 'error');
    const ran = code.every(cell => cell.executionCount !== null || !cell.sharedModel.getSource().trim());
    const idle = panel.sessionContext.session?.kernel?.status === 'idle';
    return [(ran && idle) || errors.length > 0, errors.map(error => `${error.ename}: ${error.evalue}`)];
}"""


def interactive_cells(path: Path) -> list[int]:
    """Numbers of a notebook's cells that call for an interactive view."""
    cells = nbformat.read(path, as_version=4).cells
    return [
        number
        for number, cell in enumerate(cells)
        if cell.cell_type == "code"
        and any(line.strip().startswith(VIEW) for line in cell.source.splitlines())
    ]


NOTEBOOKS = [path for path in sorted((PROJECT / "notebooks").glob("*.ipynb")) if interactive_cells(path)]


@pytest.fixture(scope="module")
def outputs(tmp_path_factory) -> Path:
    """Outputs of notebooks 00 to 04 and of the report."""
    if given := os.environ.get("BROWSER_OUTPUTS"):
        return Path(given).resolve()
    folder = tmp_path_factory.mktemp("outputs")
    common = {"dataset": DATASET, "preset": "smoke", "outputs": str(folder), "interactive": False}
    each = {"teacher": "each"}
    steps = {
        "00_data": {},
        "01_teacher_extraction": each,
        "02_proxy": each,
        "03_merging": {},
        "04_spd": {},
        "10_report": {"seeds": [0]},
    }
    for name, own in steps.items():
        executed = folder / DATASET / "notebooks" / f"{name}.ipynb"
        run_notebook(PROJECT / "notebooks" / f"{name}.ipynb", executed, common | own, threads=2, timeout=900)
    write_page(executed, folder / DATASET / "10_report" / "index.html")
    return folder


@pytest.fixture(scope="module")
def screenshots(tmp_path_factory) -> Path:
    folder = Path(os.environ.get("SCREENSHOTS") or tmp_path_factory.mktemp("screenshots")).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    print(f"\nscreenshots: {folder}")
    return folder


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        pytest.fail("no Chromium on this machine; on Debian: apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def lab(outputs, tmp_path_factory) -> Iterator[str]:
    """The address of a JupyterLab on copies of the notebooks, which read and write below `outputs`."""
    root = tmp_path_factory.mktemp("lab")
    small = f"preset = 'smoke'\noutputs = {str(outputs)!r}\ninteractive = True"
    for path in NOTEBOOKS:
        notebook = nbformat.read(path, as_version=4)
        for cell in notebook.cells:
            if cell.cell_type == "code":
                cell.outputs, cell.execution_count = [], None  # what will be seen is new
        notebook.cells.insert(2, new_code_cell(small))  # after the parameters
        nbformat.write(notebook, root / path.name)
    settings = {
        "notebook-extension/tracker": {"windowingMode": "none"},  # all cells are in the page, seen or not
        "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
    }
    for name, values in settings.items():
        file = root / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        file.parent.mkdir(parents=True)
        file.write_text(json.dumps(values))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    own = {name: str(root / name.lower()) for name in ("JUPYTER_CONFIG_DIR", "JUPYTERLAB_WORKSPACES_DIR")}
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", f"--ServerApp.port={port}"]
    command += ["--ServerApp.ip=127.0.0.1", "--ServerApp.port_retries=0", "--IdentityProvider.token="]
    command += [f"--ServerApp.root_dir={root}", "--LabApp.expose_app_in_browser=True"]
    command += ["--KernelManager.transport=ipc"]
    with (root / "lab.log").open("w") as log:
        server = subprocess.Popen(
            command,
            cwd=root,
            stdout=log,
            stderr=log,
            env={**os.environ, **own, "JUPYTERLAB_SETTINGS_DIR": str(root / "settings")},
        )
    address = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + START / 1000
        while not answers(f"{address}/api/status"):
            if server.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"JupyterLab did not start:\n{(root / 'lab.log').read_text()[-3000:]}")
            time.sleep(0.3)
        yield address
    finally:
        server.send_signal(signal.SIGTERM)  # ends the kernels too
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            server.kill()


def answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(address, timeout=5):
            return True
    except (urllib.error.URLError, OSError):
        return False


@pytest.fixture
def page(browser, lab) -> Iterator[Page]:
    page = browser.new_page(viewport={"width": 1500, "height": 1600})
    yield page
    if not page.is_closed():  # one kernel at a time
        page.evaluate("() => window.jupyterapp?.shell?.currentWidget?.sessionContext?.shutdown()")
        page.close()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_control_of_every_view_changes_its_figure(path, page, lab, screenshots):
    page.goto(f"{lab}/lab/tree/{path.name}?reset", timeout=START)
    page.locator(".jp-Notebook .jp-CodeCell").first.wait_for(timeout=START)
    page.wait_for_function(f"() => ({STATUS})() === 'idle'", timeout=START)
    page.evaluate("() => { window.jupyterapp.commands.execute('notebook:run-all-cells'); }")
    page.wait_for_function(f"() => ({STATE})()[0]", timeout=RUN, polling=500)
    assert page.evaluate(STATE)[1] == []

    for number in interactive_cells(path):
        cell = page.locator(".jp-Notebook .jp-Cell").nth(number + 1)  # one was inserted
        cell.locator("img").first.wait_for(timeout=REDRAW)
        cell.scroll_into_view_if_needed()
        called = f"{path.stem}_{number + 1:02d}"
        cell.locator(".jp-Cell-outputWrapper").screenshot(path=screenshots / f"{called}_before.png")
        try:
            operate(cell)
        finally:
            cell.locator(".jp-Cell-outputWrapper").screenshot(path=screenshots / f"{called}_after.png")


def operate(cell: Locator) -> None:
    """Choose another entry of every list, move every slider, press every button: each changes the figure."""
    lists, handles = cell.locator(".widget-dropdown select"), cell.locator(".widget-slider .noUi-handle")
    buttons = cell.locator("button.jupyter-button")
    assert lists.count() + handles.count() > 0, "a view without any control"
    for place in range(lists.count()):
        chosen = lists.nth(place)
        last = chosen.locator("option").count() - 1
        if last > 0:
            before = pictures(cell)
            chosen.select_option(index=0 if chosen.evaluate("list => list.selectedIndex") == last else last)
            wait_for_another(cell, before)
    for place in range(handles.count()):
        handle = handles.nth(place)
        low, high, now = (float(handle.get_attribute(f"aria-value{edge}")) for edge in ("min", "max", "now"))
        if low < high:
            before = pictures(cell)
            handle.press("Home" if now > (low + high) / 2 else "End")
            assert float(handle.get_attribute("aria-valuenow")) != now
            wait_for_another(cell, before)
    for place in range(buttons.count()):
        before = pictures(cell)
        buttons.nth(place).click()
        wait_for_another(cell, before)


def pictures(cell: Locator) -> list[str]:
    """The bytes of all figures in a cell's outputs, as data URLs, once the kernel has nothing to draw."""
    quiet, deadline = 0, time.monotonic() + REDRAW / 1000
    while quiet < 3:
        cell.page.wait_for_timeout(150)
        quiet = quiet + 1 if cell.page.evaluate(STATUS) == "idle" else 0
        assert time.monotonic() < deadline, "the kernel stays busy"
    assert "Traceback" not in cell.inner_text()
    return cell.locator("img").evaluate_all("images => images.map(image => image.src)")


def wait_for_another(cell: Locator, before: list[str]) -> None:
    """Until the figures are others, and as many. Fails on a traceback, or when that takes too long."""
    deadline = time.monotonic() + REDRAW / 1000
    while (now := pictures(cell)) == before or len(now) < len(before):
        assert time.monotonic() < deadline, "the figure stayed the same"
    assert all(source.startswith("data:image/") for source in now)


def test_the_report_fits_a_phone(browser, outputs, screenshots):
    page = browser.new_page(viewport=PHONE, device_scale_factor=2, is_mobile=True, has_touch=True)
    outside = []
    page.on("request", lambda request: outside.append(request.url))
    report = outputs / DATASET / "10_report" / "index.html"
    page.goto(report.as_uri(), wait_until="load")
    page.screenshot(path=screenshots / "report_phone.png", full_page=True)
    images = page.locator("img").evaluate_all("all => all.map(i => [i.complete, i.naturalWidth])")
    assert images and all(complete and width > 0 for complete, width in images)
    assert page.evaluate("() => document.documentElement.scrollWidth") <= PHONE["width"]
    assert page.evaluate("() => document.querySelector('meta[name=viewport]') !== null")
    assert not [url for url in outside if not url.startswith(("file:", "data:"))], "the page needs no network"
    page.close()
