"""A real Chromium, and pages of one example run."""

import base64
import shutil
import time
from pathlib import Path

import pytest

from steelray.report.data import IndexEntry
from steelray.report.page import render_index, render_report
from tests.report.examples import example_run

ENTER, TAB, ESCAPE = "\ue007", "\ue004", "\ue00c"
"""Keys, as WebDriver writes them."""
BINARIES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage",
)  # fmt: skip


class Browser:
    """Chromium with one page in it."""

    def __init__(self, driver, downloads):
        self.driver = driver
        self.downloads = downloads
        self.run("Page.enable")
        self.run("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(downloads))

    def run(self, command, **parameters):
        """Run a command of the DevTools protocol."""
        return self.driver.execute_cdp_cmd(command, parameters)

    def show(self, width_px=1280, height_px=900, *, dark=False, medium="screen"):
        """Set the window, the colour scheme and the medium."""
        self.run(
            "Emulation.setDeviceMetricsOverride", width=width_px, height=height_px, deviceScaleFactor=1, mobile=False
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.run("Emulation.setEmulatedMedia", media=medium, features=[scheme])

    def open(self, path):
        """Load a file, and forget what earlier pages have logged."""
        self.driver.get_log("browser")
        self.driver.get(Path(path).as_uri())

    def js(self, script, *arguments):
        """Return the result of a function body."""
        return self.driver.execute_script(script, *arguments)

    def press(self, *keys):
        """Type into the element with the focus."""
        self.driver.switch_to.active_element.send_keys(*keys)

    def settled(self, read, holds, seconds=20):
        """Read until `holds` accepts the value; return the last value, for the test to assert on."""
        deadline_s = time.monotonic() + seconds
        while not holds(value := read()) and time.monotonic() < deadline_s:
            time.sleep(0.02)
        return value

    def complaints(self):
        """Return what the console says of the page: errors, refused scripts, failed requests."""
        return [entry["message"] for entry in self.driver.get_log("browser")]

    def pdf(self):
        """Print the page on A4."""
        return base64.b64decode(self.run("Page.printToPDF", paperWidth=8.27, paperHeight=11.69)["data"])


@pytest.fixture(scope="session")
def chromium(tmp_path_factory):
    """Start one browser for all tests of the session."""
    binary = next(filter(None, map(shutil.which, BINARIES)), None)
    driver_binary = shutil.which("chromedriver")
    if binary is None or driver_binary is None:
        pytest.skip("needs a browser: apt-get install chromium chromium-driver")
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium: pip install -e .[dev]")
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('chromium-profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver_binary))
    yield Browser(driver, tmp_path_factory.mktemp("downloads"))
    driver.quit()


@pytest.fixture
def browser(chromium):
    """Reset the browser to desktop size, light colours and scripts."""
    chromium.run("Emulation.setScriptExecutionDisabled", value=False)
    chromium.show()
    return chromium


@pytest.fixture(scope="session")
def data():
    """A run of 900 strips, 30 of them in its gallery, in which camera2 has a dim lamp."""
    return example_run(900, 30, darker="camera2")


@pytest.fixture(scope="session")
def page(data, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(render_report(data), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def index_page(data, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "index.html"
    runs = [IndexEntry(run, f"{run.run_id}.html", "published", n % 2) for n, run in enumerate(data.history)]
    path.write_text(render_index(runs), encoding="utf-8")
    return path
