"""demo.py as a visitor uses it, in headless Chromium; nothing is asked of another computer.

Skipped without `pip install -r requirements-demo.txt selenium`, or without chromium and
chromedriver (Debian's packages chromium and chromium-driver).
"""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import cv2
import numpy as np
import pytest
import torch

import demo
from models import NoiseTransfer
from models.denoisers import denoiser_from_checkpoint
from models.generator import placed_noise
from tests.tiny_evaluation import write_networks
from utils.images import float_to_integer, integer_to_float, write_image

ROOT = Path(__file__).parent.parent
SECONDS = 120  # to wait for anything, where others use the machine as well
BROWSER, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
needs_browser = pytest.mark.skipif(
    not (find_spec("gradio") and find_spec("selenium") and BROWSER and DRIVER),
    reason="needs gradio, selenium, chromium and chromedriver",
)

# Python runs it first: every address that the server asks for goes into a file.
AUDIT = """
import os, sys
def note(event, args):
    if event in ("socket.getaddrinfo", "socket.gethostbyname", "socket.connect", "socket.sendto"):
        address = args[1] if args and hasattr(args[0], "fileno") else args[0]
        host = address[0] if isinstance(address, tuple) else address
        with open(os.environ["ASKED_FOR"], "a") as file:
            print(host, file=file)
sys.addaudithook(note)
"""


def photo(height: int, width: int, depth: type = np.uint8, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.integers(0, np.iinfo(depth).max + 1, (height, width, 3), depth)


def wait_for(found: Callable[[], Any], what: str) -> Any:
    end = time.monotonic() + SECONDS
    while not (value := found()):
        assert time.monotonic() < end, f"no {what} in {SECONDS} s"
        time.sleep(0.1)
    return value


class Page:
    """The page in the browser, and what is done there."""

    def __init__(self, driver: Any, downloads: Path) -> None:
        self.driver, self.downloads = driver, downloads

    def all(self, css: str) -> list:
        return self.driver.find_elements("css selector", css)

    def one(self, css: str) -> Any:
        return wait_for(lambda: self.all(css), css)[0]

    def button(self, words: str) -> Any:
        path = f"//button[contains(., '{words}')]"
        return wait_for(lambda: self.driver.find_elements("xpath", path), words)[0]

    def upload(self, kind: str, path: Path) -> None:
        if self.all(f"#{kind} [aria-label='Remove Image']"):
            self.one(f"#{kind} [aria-label='Remove Image']").click()
        self.one(f"#{kind} input[type=file]").send_keys(str(path))

    def wait_for_photo(self, kind: str) -> None:
        wait_for(lambda: self.all(f"#{kind} img"), f"photo of {kind}")

    def wait_for_status(self, words: str) -> None:
        wait_for(lambda: words in self.text("#status"), words)

    def text(self, css: str) -> str:
        code = "return [...document.querySelectorAll(arguments[0])].map(e => e.innerText).join()"
        return self.driver.execute_script(code, css)

    def download(self, words: str, name: str) -> np.ndarray:
        path = self.downloads / name
        path.unlink(missing_ok=True)
        self.button(words).click()
        wait_for(path.exists, name)
        assert path.read_bytes().startswith(b"\x89PNG")
        return cv2.cvtColor(cv2.imread(str(path), cv2.IMREAD_UNCHANGED), cv2.COLOR_BGR2RGB)

    def crops(self) -> list[str]:
        return [image.get_attribute("src") for image in self.all(".crops img")]

    def fits(self, width: int) -> bool:
        size = dict(width=width, height=900, deviceScaleFactor=1, mobile=False)
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        time.sleep(0.5)
        code = "return [document.documentElement.scrollWidth, innerWidth]"
        scrolled, inner = self.driver.execute_script(code)
        return scrolled <= inner == width

    def hosts(self) -> set[str | None]:
        """Of all requests so far."""
        events = [json.loads(e["message"])["message"] for e in self.driver.get_log("performance")]
        kinds = {"Network.requestWillBeSent", "Network.webSocketCreated"}
        urls = [
            e["params"].get("url") or e["params"]["request"]["url"]
            for e in events
            if e["method"] in kinds
        ]
        return {urlsplit(url).hostname for url in urls if not url.startswith(("data:", "blob:"))}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, Path, Path]]:
    """Address, log, and hosts that it asked for; from a folder that has the weights in ckpts."""
    write_networks(tmp_path / "ckpts")
    (tmp_path / "sitecustomize.py").write_text(AUDIT)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log, asked_for = tmp_path / "log.txt", tmp_path / "asked_for.txt"
    paths = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {"PYTHONPATH": paths, "ASKED_FOR": str(asked_for), "TMPDIR": str(tmp_path)}
    command = [sys.executable, str(ROOT / "demo.py"), "--port", str(port), "--gpu", "cpu"]
    with log.open("w") as file:
        process = subprocess.Popen(
            command, cwd=tmp_path, stdout=file, stderr=file, env=os.environ | environment
        )
    try:
        address = f"http://127.0.0.1:{port}"
        wait_for(lambda: address in log.read_text() or process.poll() is not None, "address")
        assert process.poll() is None, log.read_text()
        yield address, log, asked_for
    finally:
        process.terminate()
        time.sleep(0.05)
        process.terminate()  # again, while it leaves
        assert process.wait(30) == 143
    assert not list(tmp_path.glob("noisetransfer_*"))  # its uploads and results


@pytest.fixture
def page(server: tuple[str, Path, Path], tmp_path: Path) -> Iterator[Page]:
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for flag in ("headless=new", "no-sandbox", "disable-dev-shm-usage"):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    try:
        downloads = tmp_path / "downloads"
        behaviour = {"behavior": "allow", "downloadPath": str(downloads)}
        driver.execute_cdp_cmd("Browser.setDownloadBehavior", behaviour)
        driver.get(server[0])
        yield Page(driver, downloads)
    finally:
        driver.quit()


@needs_browser
def test_a_visit(page: Page, server: tuple[str, Path, Path], tmp_path: Path) -> None:
    from selenium.webdriver.common.keys import Keys

    _, log, asked_for = server
    reference, clean = photo(40, 50), photo(33, 60, np.uint16, seed=1)
    write_image(tmp_path / "reference.png", reference)
    write_image(tmp_path / "clean.tif", clean)

    page.button("Transfer noise").click()  # too early
    wait_for(lambda: "There is no noisy reference yet" in page.text("body"), "error")
    (tmp_path / "fake.png").write_text("no image")
    page.upload("reference", tmp_path / "fake.png")
    wait_for(lambda: "fake.png: damaged, truncated or not an image" in page.text("body"), "error")
    assert str(tmp_path) not in page.text("body")
    wait_for(lambda: not page.all("#reference img"), "empty place")

    page.upload("reference", tmp_path / "reference.png")
    page.upload("clean", tmp_path / "clean.tif")
    page.wait_for_photo("reference")
    page.wait_for_photo("clean")
    page.button("Transfer noise").click()
    page.wait_for_status("Done: noise of strength 1.")
    noisy = page.download("Download the noisy", "clean_noisy.png")
    transfer = NoiseTransfer.from_checkpoint(tmp_path / "ckpts/NT")
    x, y = (integer_to_float(image)[None] for image in (clean, reference))
    expected = transfer.transfer(x, y, placed_noise([0]))
    assert noisy.dtype == np.uint16
    # To a 16-bit step or two: sums in another order.
    np.testing.assert_allclose(noisy, float_to_integer(expected[0], np.uint16), atol=3)
    assert len(page.crops()) == 4

    page.button("Denoise").click()
    page.wait_for_status("Done: denoised.")
    denoised = page.download("Download the denoised", "clean_denoised.png")
    denoiser = denoiser_from_checkpoint(tmp_path / "ckpts/sidd/ridnet_g.pt")
    with torch.no_grad():
        expected = denoiser(integer_to_float(noisy)[None])
    np.testing.assert_allclose(denoised, float_to_integer(expected[0], np.uint16), atol=3)
    assert len(page.crops()) == 5
    assert page.fits(375)
    assert page.fits(1440)

    strength = page.one("input[type=range][aria-label*='Noise strength']")
    strength.send_keys(Keys.HOME)  # by the keyboard
    page.wait_for_status("Done: noise of strength 0.")
    np.testing.assert_array_equal(page.download("Download the noisy", "clean_noisy.png"), clean)
    assert page.text(".crops").count("no noise") == 2
    assert not [b for b in page.all("button") if "denoised" in b.text]  # it was of another image

    page.button("Pixel, ISO 1600").click()  # an example, 512x512: crops can move
    wait_for(lambda: "512" in page.driver.execute_script(SIZES), "example")
    page.wait_for_status("Done: noise of strength 0.")
    before = wait_for(page.crops, "crops")
    page.one("input[type=range][aria-label*='Across']").send_keys(Keys.END)
    wait_for(lambda: page.crops()[1] != before[1], "other crops")

    assert page.hosts() == {"127.0.0.1"}
    assert set(asked_for.read_text().split()) <= {"127.0.0.1", "localhost", "None"}
    assert "Traceback" not in log.read_text()


def test_what_the_page_computes_needs_no_gradio(tmp_path: Path) -> None:
    """As the scripts would, of the files that were dropped."""
    write_networks(tmp_path / "ckpts")
    nt, ridnet = tmp_path / "ckpts/NT", tmp_path / "ckpts/sidd/ridnet_g.pt"
    networks = demo.Networks(demo.Config(nt=nt, denoiser=ridnet, gpu="cpu"))
    reference, clean = photo(40, 50), photo(33, 60, np.uint16, seed=1)
    files = tmp_path / "reference.png", tmp_path / "clean.tif"
    for file, image in zip(files, (reference, clean), strict=True):
        write_image(file, image)
    result = networks.transfer(*files, 0.5, lambda share, desc: None)
    transfer = NoiseTransfer.from_checkpoint(nt)
    x, y = (integer_to_float(image)[None] for image in (clean, reference))
    expected = transfer.generate(x, transfer.embed(y), placed_noise([0]), 0.5)
    # To a 16-bit step or two: sums in another order.
    np.testing.assert_allclose(result.noisy, float_to_integer(expected[0], np.uint16), atol=3)
    denoised = networks.denoise(result, lambda share, desc: None).denoised
    with torch.no_grad():
        expected = denoiser_from_checkpoint(ridnet)(integer_to_float(result.noisy)[None])
    np.testing.assert_allclose(denoised, float_to_integer(expected[0], np.uint16), atol=3)


SIZES = "return [...document.querySelectorAll('.view img')].map(e => e.naturalWidth).join()"


def test_without_gradio_it_says_what_to_install(tmp_path: Path) -> None:
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); sys.modules['gradio'] = None\n"
    code += "import demo; from utils.errors import exit_on_user_error\n"
    code += "sys.argv = ['demo.py']; exit_on_user_error(demo.main)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert re.fullmatch(r"error: .*gradio.*requirements-demo\.txt\n", done.stderr)
