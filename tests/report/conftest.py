"""A real Chromium for the report's tests."""

import base64
import shutil
from pathlib import Path

import pytest

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
        """A command of the DevTools protocol."""
        return self.driver.execute_cdp_cmd(command, parameters)

    def show(self, width_px=1280, height_px=900, *, dark=False, medium="screen"):
        """Sets the window, the colour scheme and the medium."""
        self.run(
            "Emulation.setDeviceMetricsOverride", width=width_px, height=height_px, deviceScaleFactor=1, mobile=False
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.run("Emulation.setEmulatedMedia", media=medium, features=[scheme])

    def open(self, path):
        """Loads a file, and forgets what earlier pages have logged."""
        self.driver.get_log("browser")
        self.driver.get(Path(path).as_uri())

    def js(self, script, *arguments):
        """The result of a function body."""
        return self.driver.execute_script(script, *arguments)

    def press(self, *keys):
        """Types at whatever has the focus."""
        self.driver.switch_to.active_element.send_keys(*keys)

    def complaints(self):
        """What the browser's console says of the page: errors, refused scripts, failed requests."""
        return [entry["message"] for entry in self.driver.get_log("browser")]

    def pdf(self):
        """The page as it is printed on A4."""
        return base64.b64decode(self.run("Page.printToPDF", paperWidth=8.27, paperHeight=11.69)["data"])


@pytest.fixture(scope="session")
def chromium(tmp_path_factory):
    """One browser for all tests of the session."""
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
    """The browser at desktop size, in light colours, with scripts."""
    chromium.run("Emulation.setScriptExecutionDisabled", value=False)
    chromium.show()
    return chromium
