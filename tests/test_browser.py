"""The notebooks as their readers meet them: stepped through in JupyterLab, in a headless Chromium."""

import json
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.request

import pytest

from gloss_utils.runs.parameters import ROOT, STAGES
from tests.conftest import SMALL, write_small_shop

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
from selenium.webdriver.chrome.service import Service  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.wait import WebDriverWait  # noqa: E402

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="chromium or chromedriver is not installed"),
]
PATIENCE = 120  # seconds that a cell may take
WIDGET = "[...(window.jupyterapp?.shell?.widgets('main') ?? [])][0]"  # the current one is null until it is clicked
NOTEBOOK = f"{WIDGET}.content"
CELLS = f"return {NOTEBOOK}.widgets.map(cell => cell.model.toJSON())"
PROMPT = f"return {NOTEBOOK}.widgets[arguments[0]].inputArea?.promptNode?.textContent"
ACTIVE = f"return {NOTEBOOK}.activeCellIndex"
STATUS = f"return {WIDGET}?.sessionContext?.session?.kernel?.status"


@pytest.fixture
def lab(tmp_path):
    """The address of a JupyterLab on copies of the notebooks, set to the small demo in a folder of their own."""
    notebooks = tmp_path / "notebooks"
    notebooks.mkdir()
    write_small_shop(tmp_path / "data")
    values = SMALL | {"run_dir": str(tmp_path / "run"), "data_dir": str(tmp_path / "data")}
    for stage in STAGES[:4]:
        book = json.loads((ROOT / f"notebooks/{stage}.ipynb").read_text())
        cell = next(cell for cell in book["cells"] if "parameters" in cell["metadata"].get("tags", []))
        cell["source"] = [_set(line, values) for line in cell["source"]]
        (notebooks / f"{stage}.ipynb").write_text(json.dumps(book))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    token = secrets.token_hex(16)
    own = {name: str(tmp_path / name) for name in ("HOME", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR")}
    options = [f"--port={port}", f"--IdentityProvider.token={token}", "--no-browser", "--allow-root"]
    options += ["--expose-app-in-browser", "--ServerApp.port_retries=0"]
    address = f"http://127.0.0.1:{port}"
    with open(tmp_path / "lab.log", "w") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "jupyter", "lab", *options], cwd=notebooks, env=os.environ | own, stderr=log
        )
    try:
        _wait_for(f"{address}/api?token={token}", server)
        yield lambda stage: f"{address}/lab/tree/{stage}.ipynb?token={token}&reset"  # closes other tabs
    finally:
        server.terminate()  # and with it, its kernels
        server.wait(30)


def _set(line: str, values: dict) -> str:
    found = re.match(r"(\w+) = ", line)
    return f"{found[1]} = {values[found[1]]!r}\n" if found and found[1] in values else line


def _wait_for(address: str, server: subprocess.Popen):
    for _ in range(120):
        assert server.poll() is None, "JupyterLab ended"
        try:
            return urllib.request.urlopen(address, timeout=5)
        except OSError:
            time.sleep(1)
    raise AssertionError("JupyterLab does not answer")


@pytest.fixture
def browser(tmp_path):
    """A headless Chromium with a profile of its own."""
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in ("headless=new", "no-sandbox", "window-size=1300,1000", f"user-data-dir={tmp_path / 'profile'}"):
        options.add_argument(f"--{argument}")
    driver = webdriver.Chrome(options, Service(DRIVER))
    driver.set_script_timeout(60)
    yield driver
    driver.quit()


def wait(browser, script: str, wanted, *arguments, seconds: float = 60):
    """Wait until a script in the page returns what is wanted."""
    WebDriverWait(browser, seconds).until(lambda _: browser.execute_script(script, *arguments) == wanted)


def step_through(browser, lab, stage: str, pictures) -> list[dict]:
    """Run a notebook cell by cell with Shift+Enter; returns its cells. A picture is taken after each code cell."""
    browser.get(lab(stage))
    wait(browser, f"return {WIDGET}?.context?.path", f"{stage}.ipynb")
    wait(browser, STATUS, "idle")
    browser.execute_script(f"return {NOTEBOOK}.widgets[0].node").click()
    browser.switch_to.active_element.send_keys(Keys.ESCAPE)
    cells, count = browser.execute_script(CELLS), 0
    for place, cell in enumerate(cells):
        wait(browser, ACTIVE, place)
        browser.switch_to.active_element.send_keys(Keys.SHIFT, Keys.ENTER)
        if cell["cell_type"] != "code":
            continue
        count += 1
        wait(browser, PROMPT, f"[{count}]:", place, seconds=PATIENCE)
        wait(browser, STATUS, "idle", seconds=PATIENCE)  # which it says after the last output
        outputs = browser.execute_script(CELLS)[place]["outputs"]
        assert not [output for output in outputs if output["output_type"] == "error"], outputs
        browser.save_screenshot(str(pictures / f"{place:02}.png"))
    return browser.execute_script(CELLS)[: len(cells)]  # behind the last one, Shift+Enter has made an empty one


def test_notebooks_run_cell_by_cell_and_the_widget_shows_another_user(lab, browser, tmp_path):
    for stage in STAGES[:4]:
        pictures = tmp_path / "pictures" / stage
        pictures.mkdir(parents=True)
        cells = step_through(browser, lab, stage, pictures)
        assert f"{stage} finished in" in json.dumps(cells[-1]["outputs"])
    assert len(list((tmp_path / "run/rankings").glob("gloss*.trec"))) == 2

    box = browser.find_element(By.CSS_SELECTOR, ".jp-OutputArea-output input[list]")
    browser.execute_script("arguments[0].scrollIntoView()", box)
    story = browser.find_element(By.CSS_SELECTOR, ".widget-vbox .widget-output")
    shown = story.text
    assert f"User {box.get_attribute('value')}" in shown and "Recommended items" in shown
    users = [option.get_attribute("value") for option in browser.find_elements(By.CSS_SELECTOR, "datalist option")]
    assert len(users) == SMALL["max_users"]
    other = next(user for user in users if user != box.get_attribute("value"))
    box.clear()
    box.send_keys(other, Keys.ENTER)
    wait(browser, "return arguments[0].innerText.includes(arguments[1])", True, story, f"User {other}")
    assert story.text != shown and story.text.count("Recommended items") == 1
    browser.save_screenshot(str(tmp_path / "pictures/another_user.png"))
