"""The web page as its visitors meet it: by HTTP, and in Chromium, which writes test-output/web-demo.png."""

import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bdg_fast import UNet, UNetConfig
from bdg_fast.data.images import bundled_photographs

pytest.importorskip("gradio", reason="the web page needs gradio")
httpx = pytest.importorskip("httpx")

API = "/gradio_api/"
OUTPUT = Path(__file__).resolve().parents[1] / "test-output"
PATIENCE = 120
"""Seconds, for machines that do much else."""
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")


WATCHED = """
import sys
def watch(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo"):
        host = arguments[1][0] if event == "socket.connect" and isinstance(arguments[1], tuple) else arguments[0]
        if isinstance(host, str) and host not in ("127.0.0.1", "localhost", "::1"):
            print(event, host, flush=True)
sys.addaudithook(watch)
from bdg_fast.cli import main
sys.exit(main())
"""
"""The command, telling of every other machine that it looks for."""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A network that changes little; another one may be named for a better picture."""
    if named := os.environ.get("BDG_FAST_WEB_CHECKPOINT"):
        return named
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    unet = UNet(UNetConfig(width=8, multipliers=(1, 1, 1, 1)))
    torch.nn.init.normal_(unet.final.norm1.weight, mean=1)  # not fresh
    unet.head.weight.data *= 0.03
    unet.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def address(checkpoint):
    """Of a served page."""
    command = (sys.executable, "-c", WATCHED, "demo", "--web", "--port", "0", "--max-megabytes", "1")
    command += ("--checkpoint", checkpoint)
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            line = server.stdout.readline()
            assert line.startswith("http://127.0.0.1:"), line
            yield line.split()[0]
        finally:
            server.terminate()
        assert server.wait(30) == 128 + 15
        assert server.stdout.read() == ""  # it has looked for no other machine


@pytest.fixture
def visitors(address):
    """Two, who have opened the page."""
    with httpx.Client(base_url=address, timeout=PATIENCE) as one, httpx.Client(base_url=address) as other:
        for visitor in (one, other):
            assert visitor.get("/").status_code == 200
        yield one, other


def photograph(noise=0.0):
    """A PNG file, as bytes."""
    path = next(photo for photo in bundled_photographs() if photo.stem == "parrot")
    pixels = np.array(Image.open(path)) + np.random.default_rng(0).normal(0, noise + 1e-9, (256, 256, 3))
    file = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(file, "PNG")
    return file.getvalue()


def send(visitor, data, name="photo.png"):
    answer = visitor.post(f"{API}upload", files={"files": (name, data)})
    assert answer.status_code == 200, answer.text
    (path,) = answer.json()
    return path


def call(visitor, function, path):
    """What a function of the page answers to a request that names a file."""
    data = {"path": path, "meta": {"_type": "gradio.FileData"}}
    session = os.urandom(6).hex()
    body = {"data": [data], "fn_index": function, "session_hash": session}
    assert visitor.post(f"{API}queue/join", json=body).status_code == 200
    with visitor.stream("GET", f"{API}queue/data", params={"session_hash": session}, timeout=PATIENCE) as events:
        for line in events.iter_lines():
            if line.startswith("data:") and (event := json.loads(line[5:]))["msg"] == "process_completed":
                return event["output"]
    raise AssertionError("no answer")


def test_a_file_is_given_to_who_sent_it_alone(visitors, address):
    mine, other = visitors
    data = photograph()
    path = send(mine, data)
    own = mine.get(f"{API}file={path}")
    assert own.content == data and "no-store" in own.headers["cache-control"]
    assert other.get(f"{API}file={path}").status_code == 403
    assert httpx.get(f"{address}{API.strip('/')}/file={path}").status_code == 403
    forged = {"cookie": "bdg_fast_session=" + "A" * 43}
    assert httpx.get(f"{address}{API.strip('/')}/file={path}", headers=forged).status_code == 403
    for function in (0, 3):  # to look at it, to restore it
        assert "file is gone" in json.dumps(call(other, function, path))
    assert "256 \\u00d7 256" in json.dumps(call(mine, 0, path))
    assert mine.get(f"{API}file={path}").content == data  # a foreign request has taken nothing


def test_what_is_made_is_given_to_whom_it_is_made_for(visitors):
    mine, other = visitors
    answer = call(mine, 3, send(mine, photograph(), "../my photo.png"))
    made = [part["url"] for part in answer["data"][1]] + [answer["data"][2]["value"]["url"]]
    assert [Path(url).name for url in made] == ["before.jpg", "after.jpg", "my_photo_restored.png"]
    assert len({Path(url).parent.name for url in made}) == 3 and all(len(Path(url).parent.name) == 32 for url in made)
    for url in made:
        assert mine.get(url).status_code == 200
        assert other.get(url).status_code == 403


def test_files_of_the_machine_are_given_to_nobody(visitors):
    visitor, _ = visitors
    path = send(visitor, photograph())
    up = "/..".join([path, *[""] * 12])
    for named in ("/etc/passwd", f"{up}/etc/passwd", f"{up.replace('..', '%2e%2e')}/etc/passwd", str(Path(path).parent),
                  "http://127.0.0.1/", "file:///etc/passwd", f"{path}%00", __file__):  # fmt: skip
        answer = visitor.get(f"{API}file={named}")
        # 404: httpx itself resolves plain ".."
        assert answer.status_code in (403, 404) and b"root:" not in answer.content, named
    for named in (__file__, "/dev/zero", "http://elsewhere.invalid/a.png"):  # the fixture sees who is looked for
        assert "file is gone" in json.dumps(call(visitor, 0, named)), named
    (root,) = {parent for parent in Path(path).parents if parent.name.startswith("bdg-fast-web-")}
    assert not [*root.rglob(Path(__file__).name)]  # nothing is copied
    assert visitor.post(f"{API}queue/join", content=b"[" * 90_000).status_code == 400


def test_addresses_without_use_are_refused(visitors):
    visitor, _ = visitors
    for path in (
        "monitoring", "login", "docs", "openapi.json", f"{API}info", f"{API}proxy=http://127.0.0.1/", f"{API}runs",
        f"{API}file/etc/passwd", f"{API}custom_component/1/client/a/b.js", f"{API}deep_link", f"{API}queue/status",
    ):  # fmt: skip
        assert visitor.get(path).status_code == 404, path


def test_uploads_are_limited_and_pages_load_nothing_from_elsewhere(visitors, address):
    visitor, _ = visitors
    large = visitor.post(f"{API}upload", files={"files": ("a.png", bytes(3 << 20))})
    assert large.status_code == 413 and "at most 1 MB" in large.text
    several = {"files": ("a.png", bytes((1 << 20) + 1))}
    assert visitor.post(f"{API}upload", files=several).status_code == 413  # a little more, with room for headers
    unknown = visitor.post(f"{API}upload", content=iter([b"a", b"b"]), headers={"content-type": "multipart/form-data"})
    assert unknown.status_code == 411
    assert visitor.post(f"{API}queue/join", json={"data": ["a" * 200_000]}).status_code == 413
    first = httpx.get(address)
    assert "default-src 'self'" in first.headers["content-security-policy"]
    assert "HttpOnly" in first.headers["set-cookie"] and "SameSite=Lax" in first.headers["set-cookie"]
    assert "set-cookie" not in visitor.get("/").headers  # it has one
    odd = {"cookie": '"a b"=[{1}]; bdg_fast_session=' + "a" * 43}
    assert "set-cookie" not in httpx.get(address, headers=odd).headers  # what other servers set changes nothing


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    webdriver = pytest.importorskip("selenium.webdriver", reason="the browser is driven by selenium")
    if CHROMIUM is None or DRIVER is None:
        pytest.skip("needs chromium and chromedriver")
    downloads, profile = (tmp_path_factory.mktemp(name) for name in ("downloads", "profile"))
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in (
        "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync", "--window-size=1280,1020",
        f"--user-data-dir={profile}",
    ):  # fmt: skip
        options.add_argument(argument)
    options.add_experimental_option("prefs", {"download.default_directory": str(downloads)})
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    driver.downloads = downloads
    try:
        driver.get("about:blank")
        driver.get_log("performance")  # of Chromium's own first page
        yield driver
    finally:
        driver.quit()


def until(browser, found):
    """What ``found`` gives when it gives something."""
    from selenium.common.exceptions import StaleElementReferenceException
    from selenium.webdriver.support.ui import WebDriverWait

    wait = WebDriverWait(browser, PATIENCE, 0.1, ignored_exceptions=[StaleElementReferenceException])
    return wait.until(lambda _: found())


def first(browser, selector):
    found = browser.find_elements("css selector", selector)
    return found[0] if found else None


def choose(browser, path):
    until(browser, lambda: first(browser, "#upload input[type=file]")).send_keys(str(path))


def told(browser, text):
    """The line that tells how things are, when it has the text."""
    line = until(browser, lambda: (e := first(browser, "#told p")) and text in e.text and e)
    return line.text, line.get_attribute("role")


def requested(browser):
    """Addresses of all requests so far, and those that failed."""
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    sent = [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
    answers = [e["params"]["response"] for e in events if e["method"] == "Network.responseReceived"]
    return sent, [(a["status"], a["url"]) for a in answers if a["status"] >= 400]


def test_a_photograph_is_restored_in_a_browser(browser, address, tmp_path, capsys):
    from selenium.webdriver.common.keys import Keys

    (tmp_path / "parrot, noisy.png").write_bytes(photograph(noise=20))
    browser.get(address)
    until(browser, lambda: browser.title == "Restore a picture")
    choose(browser, tmp_path / "parrot, noisy.png")
    assert told(browser, "256 × 256 pixels")[1] == "status"
    button = until(browser, lambda: (e := first(browser, "#restore")) and e.is_enabled() and e)
    report = until(browser, lambda: first(browser, "#report .report"))
    assert "standard deviation" in report.text and "noise" in first(browser, "#report th").text
    assert not first(browser, "#download").is_enabled()
    button.click()
    told(browser, "Restored in")

    names = ("before", "restored")
    pictures = until(browser, lambda: [first(browser, f"#slider img[alt={name}]") for name in names])
    for picture in pictures:
        until(browser, lambda picture=picture: picture.get_attribute("naturalWidth") == "256")
        assert picture.is_displayed()
    OUTPUT.mkdir(exist_ok=True)
    assert browser.save_screenshot(str(OUTPUT / "web-demo.png"))
    with capsys.disabled():
        print(f"\nscreenshot: {OUTPUT / 'web-demo.png'}")

    line = until(browser, lambda: first(browser, "#slider [role=slider]"))
    cut = pictures[1].get_attribute("style")
    line.send_keys(Keys.ARROW_LEFT)
    until(browser, lambda: line.get_attribute("aria-valuenow") == "45")
    until(browser, lambda: pictures[1].get_attribute("style") != cut)

    until(browser, lambda: (e := first(browser, "#download")) and e.is_enabled() and e).click()
    (file,) = until(browser, lambda: list(browser.downloads.glob("*.png")))
    assert file.name == "parrot_noisy_restored.png"
    restored = Image.open(file)
    assert restored.format == "PNG" and restored.size == (256, 256)

    sent, failed = requested(browser)
    elsewhere = [url for url in sent if not url.startswith((address, "data:", "blob:", "about:"))]
    assert len(sent) > 10 and not elsewhere
    assert not [answer for answer in failed if "upload_progress" not in answer[1]]  # an upload may be done before
    errors = [entry["message"] for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
    assert not [message for message in errors if "upload_progress" not in message and " Response" not in message]


def test_bad_uploads_are_told_in_a_browser(browser, address, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no picture")
    (tmp_path / "large.png").write_bytes(bytes(2 << 20))
    (tmp_path / "notes.txt").write_bytes(b"no picture")
    browser.get(address)
    choose(browser, tmp_path / "broken.png")
    assert told(browser, "no picture that can be read")[1] == "alert"
    assert not first(browser, "#restore").is_enabled()
    for name, message in (("large.png", "exceed the maximum allowed size"), ("notes.txt", "Invalid file type")):
        browser.get(address)
        choose(browser, tmp_path / name)
        until(browser, lambda message=message: message in browser.find_element("tag name", "body").text)
