"""Opens a comparison in TensorBoard, in headless Chromium. Run with ``-m browser``."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from splitgym.learn.compare import compare
from splitgym.learn.comparison_board import page

pytestmark = pytest.mark.browser

CARD = """\
description: Two prompt and two token machines for a few seconds.
cluster:
  model: llama2-70b
  machines: [{role: prompt, hardware: h100-80gb, count: 2}, {role: token, hardware: h100-80gb, count: 2}]
workload: {source: synthetic, arrivals: {process: poisson}, lengths: azure-conversation, rate_rps: 8}
episode: {warmup_s: 2, horizon_s: 12, drain_s: 60, tick_s: 2}
"""
POLICIES = ["splitwise", "lmetric", "random"]
PATIENCE_S = 60


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A TensorBoard that shows a comparison of three policies at two rates."""
    folder = tmp_path_factory.mktemp("comparison")
    (folder / "Quick.yaml").write_text(CARD)
    compare(folder / "Quick.yaml", POLICIES, [6, 10], seeds=3, logdir=folder / "tb")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(folder / "tb")]
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen([*command, "--host", "127.0.0.1", "--port", str(port)], stdout=log, stderr=log)
    try:
        wait_until_served(f"http://127.0.0.1:{port}/data/runs", server, folder / "log")
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(timeout=20)


def wait_until_served(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    until_s = time.monotonic() + PATIENCE_S
    while time.monotonic() < until_s and server.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                if b"splitwise" in answer.read():
                    return
        except (urllib.error.URLError, TimeoutError, ConnectionError):
            pass
        time.sleep(0.5)
    pytest.fail(f"TensorBoard did not come up: {log.read_text()}")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    webdriver = pytest.importorskip("selenium.webdriver")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("no Chromium: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"):
        options.add_argument(argument)
    options.add_argument("--window-size=1500,1100")
    chrome = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    try:
        yield chrome
    finally:
        chrome.quit()


def text_of(browser: Any) -> str:
    """All text of the page, that inside its components too."""
    script = """
        const seen = [];
        const walk = node => {
            if (node.nodeType === Node.TEXT_NODE) seen.push(node.textContent);
            if (node.shadowRoot) walk(node.shadowRoot);
            for (const child of node.childNodes) if (!['STYLE', 'SCRIPT'].includes(child.nodeName)) walk(child);
        };
        walk(document.body);
        return seen.join(' ');
    """
    return str(browser.execute_script(script))


def wait_for(browser: Any, *parts: str) -> None:
    """Wait until all ``parts`` are on the page, whatever blanks TensorBoard puts into its tags."""
    until_s = time.monotonic() + PATIENCE_S
    while time.monotonic() < until_s:
        text = "".join(text_of(browser).split())
        missing = [part for part in parts if "".join(part.split()) not in text]
        if not missing:
            return
        time.sleep(0.5)
    raise AssertionError(f"{missing} not on the page: {text[:2000]}")


def open_page(browser: Any, url: str) -> None:
    browser.get("about:blank")  # a change of the fragment alone would not load it anew
    browser.get(url)


def test_runs_and_pinned_charts(browser: Any, address: str, tmp_path: Path) -> None:
    open_page(browser, page(address))
    wait_for(browser, "comparison", *POLICIES, "load/slowdown", "load/ttft_p99_s", "load/tbt_p90_s", "6 cards")
    assert browser.save_screenshot(str(tmp_path / "charts.png"))
    drawn = "return document.querySelectorAll('line-chart svg path, line-chart canvas').length"
    assert browser.execute_script(drawn) > 0


def test_tags(browser: Any, address: str) -> None:
    open_page(browser, f"{address}/?tagFilter=slo_met%7Cgoodput%7Cenergy_kwh#timeseries")
    wait_for(browser, "load/slo_met", "load/goodput_rps", "load_other/energy_kwh")
    open_page(browser, f"{address}/?tagFilter=pending_prompts#timeseries")  # charts further down are drawn when seen
    wait_for(browser, "timeline/pending_prompts")


def test_images(browser: Any, address: str, tmp_path: Path) -> None:
    open_page(browser, f"{address}/?tagFilter=pictures#timeseries")
    wait_for(browser, "pictures/latency", "pictures/machines")
    loaded = "return [...document.querySelectorAll('img')].filter(i => i.naturalWidth > 600).length"
    until_s = time.monotonic() + PATIENCE_S
    while browser.execute_script(loaded) < 4 and time.monotonic() < until_s:
        time.sleep(0.5)
    assert browser.save_screenshot(str(tmp_path / "images.png"))
    assert browser.execute_script(loaded) >= 4  # a Gantt chart and latencies of each policy, the rest below the fold


def test_margin_charts(browser: Any, address: str) -> None:
    open_page(browser, f"{address}/#custom_scalars")
    wait_for(browser, "95 % intervals over seeds; x: offered requests/s", "TTFT P99, s", "slowdown", "Matches")


def test_verdict_and_hparams(browser: Any, address: str) -> None:
    open_page(browser, f"{address}/#text")
    wait_for(browser, "Best heuristic at 10 requests/s", "won–lost")
    open_page(browser, f"{address}/#hparams")
    wait_for(browser, "Hyperparameters", "algorithm", "heuristic", "lmetric")
