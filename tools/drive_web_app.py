"""Drive the web app in a headless Chromium, as a person would, and take screenshots of what it shows.

Needs Chromium with its driver (Debian: `apt-get install chromium chromium-driver`) and `pip install selenium`, which is
no dependency of the project. Starts a server of its own for each checkpoint, and exits with an error if a step fails:

    python tools/drive_web_app.py runs/mine/final runs/questions/final --photo photo.jpg --output screenshots

It uploads the photo, uses each tab that the checkpoint has, clicks on a word, sees the map appear and change with the
word, the layer and the head, asks with the keyboard alone, and looks at the page in the dark, at the width of a phone
and at the API's page. No request may leave the machine, and the browser's console must stay empty. With --hostile it
also gives HTML with scripts for the model's name (a link to the checkpoint), the photo's and all texts: none may become
a part of the page.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import Select, WebDriverWait

FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage",
    "--window-size=1280,1000",
)  # fmt: skip


@contextmanager
def server(checkpoint: str, *options: str) -> Iterator[str]:
    """A server of this checkpoint; its address."""
    command = [sys.executable, "-m", "pixelbert", "serve", "--checkpoint", checkpoint, "--port", "0", *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield re.search(r"http://\S+", process.stdout.readline())[0]  # type: ignore[index]
    finally:
        process.terminate()
        assert process.wait(20) == 0, "the server did not stop cleanly"


@contextmanager
def browser() -> Iterator[webdriver.Chrome]:
    profile = tempfile.mkdtemp()
    options = webdriver.ChromeOptions()
    for flag in (*FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options, Service("/usr/bin/chromedriver"))
    try:
        yield driver
    finally:
        driver.quit()
        shutil.rmtree(profile, ignore_errors=True)


class Visit:
    """A person at the page."""

    def __init__(self, driver: webdriver.Chrome, address: str, output: Path, name: str) -> None:
        self.driver, self.address, self.output, self.name = driver, address, output, name
        self.wait = WebDriverWait(driver, 30)

    def find(self, selector: str) -> WebElement:
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def all(self, selector: str) -> list[WebElement]:
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def shown(self, selector: str) -> WebElement:
        return self.wait.until(lambda _: next((e for e in self.all(selector) if e.is_displayed()), None))

    def picture(self, step: str) -> None:
        height = self.driver.execute_script("return document.documentElement.scrollHeight")
        width = self.driver.execute_script("return window.innerWidth")
        self.driver.execute_script("window.scrollTo(0, 0)")
        metrics = {"width": width, "height": min(height, 2400), "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        self.driver.execute_script("return new Promise(done => setTimeout(done, 500))")  # what fades in has done so
        self.driver.save_screenshot(str(self.output / f"{self.name}_{step}.png"))
        self.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})

    def colours(self) -> str:
        """What is drawn over the photo; nothing while it is hidden."""
        script = "const c = document.querySelector('canvas'); return c.hidden ? '' : c.toDataURL()"
        return self.driver.execute_script(script)

    def ask(self, task: str, text: str) -> list[str]:
        """Use a tab, with the keyboard; what it answers."""
        if self.find("#tabs").is_displayed():
            self.find(f"#tab-{task}").click()
        field = self.shown(f"#{task}-text")
        field.clear()
        field.send_keys(text, Keys.CONTROL, Keys.ENTER)
        self.shown(f"#{task} .results .took")
        return [row.text for row in self.all(f"#{task} .results .row, #{task} .found button")]

    def upload(self, photo: Path) -> None:
        for place in self.all(".slot input"):
            place.send_keys(str(photo))

    def words(self) -> None:
        """Click on words; the map changes with the word, the layer and the head, and goes again."""
        self.shown("#words button")
        assert not self.colours()
        seen: set[str] = set()
        buttons = self.all("#words button")
        for button in buttons[:3]:
            button.click()
            assert button.get_attribute("aria-pressed") == "true"
            seen.add(self.colours())
        assert len(seen - {""}) == len(buttons[:3]), "the map does not change with the word"
        for select in ("layer", "head"):
            before = self.colours()
            Select(self.find(f"#{select}")).select_by_value("1")
            self.wait.until(lambda _, before=before: self.colours() not in ("", before))
        assert "of its attention on the " in self.find("#attention-said").text
        Select(self.find("#layer")).select_by_value("rollout")
        self.wait.until(lambda _: not self.find("#head").is_enabled())
        self.find("body").send_keys(Keys.ESCAPE)
        assert not self.colours()
        Select(self.find("#layer")).select_by_value("0")
        Select(self.find("#head")).select_by_value("")


LOADED = "return [...document.querySelectorAll('.found img')].every(image => image.naturalWidth > 0)"
TEXTS = {
    "match": "two dogs playing on the grass\na plate of food\na man on a surfboard\na dog with a ball",
    "answer": "what is above the sink",
    "fill-mask": "two [MASK] playing on the [MASK]",
    "reason": "there are two dogs in the left photo",
    "search": "two dogs on the grass",
}


def visit(driver: webdriver.Chrome, address: str, photo: Path, output: Path, name: str, word: str | None) -> None:
    page = Visit(driver, address, output, name)
    driver.get(address)
    page.wait.until(lambda _: page.all("#slots .slot"))
    page.picture("empty")
    tasks = [task for task in TEXTS if page.all(f"#tab-{task}")]
    print(name, "can", tasks)
    page.find(f"#{tasks[0]}-text").send_keys("x", Keys.CONTROL, Keys.ENTER)
    assert "photo first" in page.find(f"#{tasks[0]} .error").text
    bad = output / "not a photo.txt"
    bad.write_text("text")
    page.upload(bad)
    page.find(f"#{tasks[0]}-text").send_keys(Keys.CONTROL, Keys.ENTER)
    page.wait.until(lambda _: "not an image" in page.find(f"#{tasks[0]} .error").text)
    bad.unlink()
    for task in tasks:
        page.upload(photo)
        answers = page.ask(task, TEXTS[task])
        print(" ", task, answers)
        assert answers
        if task == "search":
            page.wait.until(lambda _: driver.execute_script(LOADED))
            page.picture(task)
            page.all(".found button")[1].click()
            page.wait.until(lambda _: "result 2" in page.find("figcaption .name").text)
            continue
        page.words()
        buttons = page.all("#words button")
        next((b for b in buttons if b.text == word), buttons[-1]).click()
        page.picture(task)
    driver.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": "dark"}]}
    )
    page.picture("dark")
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    if "match" in tasks:
        page.ask("match", TEXTS["match"])
        page.all("#match .results .row")[1].click()
        page.wait.until(lambda _: not page.colours() and page.find("#words button"))
    page.all("#examples button")[1].click()
    page.wait.until(lambda _: not page.all(".results .row"))
    driver.set_window_size(500, 900)
    driver.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True}
    )
    page.ask(tasks[0], TEXTS[tasks[0]])
    page.shown("#words button").click()
    width = driver.execute_script("return document.documentElement.scrollWidth")
    assert width <= 390, f"the page is {width} wide on a phone of 390"
    page.picture("phone")
    driver.set_window_size(1280, 1000)
    driver.get(f"{address}/docs")
    page.shown("#operations .card")
    page.picture("api")
    problems = [entry for entry in driver.get_log("browser") if "422" not in entry["message"]]  # the bad photo's
    assert not problems, problems
    events = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    urls = {e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"}
    strangers = [url for url in urls if not url.startswith((address, "blob:", "data:", "chrome:", "chrome-untrusted:"))]
    assert not strangers, strangers


MARKUP = "<img src=x onerror=window.taken=1><script>window.taken=1;</script><b class=taken>dog"
NAME = "<img src=x onerror=window.taken=1><b class=taken>dog"  # a file's, which has no slash

TAKEN = "return Boolean(window.taken || document.querySelector('.taken, [onerror]'))"


def hostile(driver: webdriver.Chrome, address: str, photo: Path, output: Path) -> None:
    """Ask with HTML in every place that the page shows again, and see that it stays text."""
    page = Visit(driver, address, output, "hostile")
    driver.get(address)
    page.wait.until(lambda _: page.all("#slots .slot"))
    assert NAME in page.find("#model").text
    named = output / f"{NAME}{photo.suffix}"
    shutil.copy(photo, named)
    for task in [task for task in TEXTS if page.all(f"#tab-{task}")]:
        page.upload(named)
        text = f"[MASK] {MARKUP}" if task == "fill-mask" else f"{MARKUP}\n{MARKUP} again" if task == "match" else MARKUP
        print("  hostile", task, page.ask(task, text))
        if task == "match":
            assert MARKUP in page.find("#match .results").text
        if task != "search":
            page.shown("#words button").click()
    page.picture("texts")
    assert not driver.execute_script(TAKEN)
    driver.get(f"{address}/docs")
    page.shown("#operations .card")
    assert NAME in page.find("#about").text
    assert not driver.execute_script(TAKEN)
    for path in (f"/{MARKUP}", f"/api/v1/{MARKUP}", f"/api/v1/search?text={MARKUP}"):
        driver.get(address + path)
        assert not driver.execute_script(TAKEN), path
    named.unlink()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoints", nargs="+")
    parser.add_argument("--photo", type=Path, required=True)
    parser.add_argument("--word", help="to be clicked on in the pictures; the last by default")
    parser.add_argument("--index", help="of the checkpoint, to search in")
    parser.add_argument("--hostile", action="store_true", help="also with HTML for every name and text")
    parser.add_argument("--output", type=Path, required=True, help="folder for the screenshots")
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    for checkpoint in arguments.checkpoints:
        name = next(part for part in reversed(Path(checkpoint).parts) if part != "final")
        with (
            server(checkpoint, *(["--index", arguments.index] if arguments.index else [])) as address,
            browser() as driver,
        ):
            visit(driver, address, arguments.photo.resolve(), arguments.output.resolve(), name, arguments.word)
        if arguments.hostile:
            with tempfile.TemporaryDirectory() as folder:
                link = Path(folder) / NAME
                link.symlink_to(Path(checkpoint).resolve(), target_is_directory=True)
                with server(str(link)) as address, browser() as driver:
                    hostile(driver, address, arguments.photo.resolve(), arguments.output.resolve())


if __name__ == "__main__":
    main()
