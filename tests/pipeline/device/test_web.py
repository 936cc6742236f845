"""Browsers as devices: a real page in headless Chromium, and node, with onnxruntime-web where it is installed."""

from __future__ import annotations

import os
import shutil
import urllib.error
import urllib.request
from dataclasses import replace
from pathlib import Path

import pytest

from edgewise.device import web
from edgewise.device.bench import Request
from edgewise.device.bundle import Bundle
from edgewise.device.link import DeviceError
from edgewise.errors import RequestError
from edgewise.targets import MissingBackend

BRIEF = Request(mode=("--brief", "0.2"), timeout=120)


@pytest.fixture
def runtime() -> Path:
    """node_modules with onnxruntime-web: of this folder, or as EDGEWISE_NODE_MODULES names it."""
    place = Path(os.environ.get("EDGEWISE_NODE_MODULES", "node_modules"))
    if not (place / "onnxruntime-web").is_dir():
        pytest.skip("needs onnxruntime-web: npm install onnxruntime-web, and EDGEWISE_NODE_MODULES=node_modules")
    return place


@pytest.mark.parametrize("who", ["node", "chromium"])
def test_a_browsers_answers_are_the_hosts_and_its_times_do_not_rank(bundled: Bundle, runtime: Path, who: str) -> None:
    if shutil.which(who) is None:
        pytest.skip(f"needs {who}: sudo apt-get install {'nodejs' if who == 'node' else who}")
    found = web.measure(bundled, f"web://{who}", replace(BRIEF, web_runtime=runtime), print, who)
    assert [(row.kind, row.verdict) for row in found.rows] == [("wasm", "pass")] * 2
    for row in found.rows:
        assert row.accuracy is not None and row.accuracy.vs_baseline.delta == 0 and row.accuracy.n == 60
        assert row.time is not None and row.time.ratio_to_baseline is None and row.time.state == "unknown"
        assert "0 of 16 in another class" in row.golden and row.runtime.startswith("onnxruntime-web 1.")


def test_a_browser_feeds_files_as_their_cards_say(fed_bundled: Bundle, runtime: Path) -> None:
    if shutil.which("node") is None:
        pytest.skip("needs node: sudo apt-get install nodejs")
    rows = web.measure(fed_bundled, "web://node", replace(BRIEF, web_runtime=runtime), print, "node").rows
    told = {row.file: row.golden for row in rows if row.file.endswith(".onnx")}
    assert set(told) == {"normalised.onnx", "channels-last.onnx", "bytes.onnx"}
    assert all("0 of 16 in another class" in words for words in told.values()), told


@pytest.mark.parametrize("address", ["web://firefox", "web://:99999", "web:/", "web://chromium:x"])
def test_what_is_no_address_is_refused(bundled: Bundle, address: str) -> None:
    with pytest.raises(RequestError, match="wanted web://"):
        web.measure(bundled, address, BRIEF, print, "x")


def test_without_the_runtime_the_line_that_installs_it(bundled: Bundle, tmp_path: Path) -> None:
    with pytest.raises(MissingBackend, match="npm install onnxruntime-web"):
        web.measure(bundled, "web://node", replace(BRIEF, web_runtime=tmp_path), print, "x")


def test_a_sustained_measurement_is_refused(bundled: Bundle, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="no --sustained"):
        web.measure(bundled, "web://", Request(mode=("--sustained", "1"), web_runtime=_fake(tmp_path)), print, "x")
    with pytest.raises(RequestError, match="cannot be pinned"):
        web.measure(bundled, "web://", Request(pin="big"), print, "x")


def _fake(tmp_path: Path) -> Path:
    """A folder where a runtime is looked for."""
    place = tmp_path / "onnxruntime-web/dist"
    place.mkdir(parents=True)
    (place / "ort.wasm.min.mjs").write_text("export {}")
    return tmp_path


def test_only_the_bundle_and_the_page_are_served_and_only_with_the_token(bundled: Bundle, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("x")
    runtime = web._runtime_folder(_fake(tmp_path))
    desk = web._Desk(token="token", bundle=bundled.path, runtime=runtime, request=b"{}")
    with web._serve_page(desk, 0) as port:
        base = f"http://127.0.0.1:{port}/"
        with urllib.request.urlopen(f"{base}token/") as page:
            assert page.headers["Cross-Origin-Embedder-Policy"] == "require-corp" and b"<title>" in page.read()
        with urllib.request.urlopen(f"{base}token/entry/files/onnx/narrow.onnx") as entry:
            content = entry.read()
        assert content == (bundled.path.parent / "artifacts/onnx/narrow.onnx").read_bytes()
        wrong = (
            "",
            "other/",
            "token/../secret",
            "token/runtime/../../../secret",
            "token/runtime//etc/passwd",
            "token/entry/no",
        )
        for path in wrong:
            with pytest.raises(urllib.error.HTTPError, match="404"):
                urllib.request.urlopen(base + path)


def test_a_page_that_fails_or_says_nothing_is_told(bundled: Bundle, tmp_path: Path) -> None:
    if shutil.which("node") is None:
        pytest.skip("needs node: sudo apt-get install nodejs")
    with pytest.raises(DeviceError, match="the page failed"):
        web.measure(bundled, "web://node", replace(BRIEF, web_runtime=_fake(tmp_path)), print, "x")
    with pytest.raises(DeviceError, match="no result within 0 s"):
        web.measure(bundled, "web://", Request(timeout=0.3, web_runtime=tmp_path), print, "x")
