"""A browser as a device: a page on this machine that measures a bundle's ONNX files with onnxruntime-web.

``web://`` waits for any browser to open the address that is printed; ``web://chromium`` and ``web://node`` start one.
A phone opens it as its own localhost with ``adb reverse tcp:PORT tcp:PORT``, where a page may use threads. The address
holds a token that is drawn anew, only the bundle's own entries are served, and the result is taken in as any other.
"""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import re
import secrets
import shutil
import subprocess
import tempfile
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgewise.device.bench import Measurement, Request, Say, take_in
from edgewise.device.bundle import Bundle
from edgewise.device.link import DeviceError
from edgewise.device.result import MOST_BYTES
from edgewise.device.runner.main import MODES
from edgewise.errors import RequestError
from edgewise.targets import MissingBackend

_ADDRESS = re.compile(r"web://(?P<who>chromium|node)?(?::(?P<port>\d{1,5}))?")
_PAGES = Path(__file__).parent / "web"
_KINDS = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript",
    ".mjs": "text/javascript",
    ".wasm": "application/wasm",
}
_BROWSERS = ("chromium", "chromium-browser", "google-chrome")


@dataclass
class _Desk:
    """What is served, and what came back."""

    token: str
    bundle: Path
    runtime: Path
    request: bytes
    isolated: bool = True
    done: threading.Event = field(default_factory=threading.Event)
    result: bytes = b""
    error: str = ""


def measure(bundle: Bundle, address: str, request: Request, say: Say, name: str) -> Measurement:
    """Serve the page, wait for its result, and take it in.

    Raises RequestError for an address that is none, MissingBackend without onnxruntime-web or the browser, DeviceError for
    a page that fails or does not answer.
    """
    match = _parse(address)
    if request.pin:
        raise RequestError(f"{address}: a browser cannot be pinned to processors; leave out --pin")
    if request.native is not None:
        raise RequestError(f"{address}: a browser runs no compiled program; leave out --native")
    desk = _Desk(
        token=secrets.token_urlsafe(16),
        bundle=bundle.path,
        runtime=_runtime_folder(request.web_runtime),
        request=_request_json(bundle, request),
    )
    with _serve_page(desk, int(match["port"] or 0)) as port, _start_client(match["who"], port, desk) as process:
        if match["who"] is None:
            say(f"open http://localhost:{port}/{desk.token}/ in the browser to be measured")
            say(f"on a phone with USB debugging: adb reverse tcp:{port} tcp:{port}, then the same address there")
        _wait_for_result(desk, process, request.seconds(len(bundle.manifest.files)), address)
    if desk.error:
        raise DeviceError(f"{address}: the page failed: {desk.error}")
    return take_in(bundle, desk.result, name, request.mode[0].lstrip("-"))


def _parse(address: str) -> re.Match[str]:
    match = _ADDRESS.fullmatch(address.rstrip("/") if address != "web://" else address)
    if match is None or int(match["port"] or 0) > 65535:
        raise RequestError(f"device {address!r}: wanted web://, web://:PORT, web://chromium or web://node")
    return match


def host_of(address: str) -> str:
    """The physical machine of a browser: this one for those that are started here, else one of its own.

    Raises RequestError for an address that is none.
    """
    return "local" if _parse(address)["who"] else address


def _runtime_folder(folder: Path | None) -> Path:
    place = (folder or Path("node_modules")) / "onnxruntime-web" / "dist"
    if not (place / "ort.wasm.min.mjs").is_file():
        raise MissingBackend(
            f"web:// needs onnxruntime-web, found none at {place}: npm install onnxruntime-web, and name its folder with "
            "--web-runtime node_modules"
        )
    return place


def _request_json(bundle: Bundle, request: Request) -> bytes:
    word, *rest = request.mode
    name = word.lstrip("-")
    mode = {"name": name, **MODES[name]} if name in MODES else _own_mode(name, float(rest[0]))
    document = {"bundle": bundle.sha256, "threads": request.threads, "only": list(request.only), "mode": mode}
    return json.dumps(document).encode()


def _own_mode(name: str, value: float) -> dict[str, Any]:
    if name == "sustained":
        raise RequestError("web:// has no --sustained: a page in the background is slowed, which no temperature tells")
    return {"name": name, "calls": 1, "seconds": value, "blocks": 10}


def _wait_for_result(desk: _Desk, process: subprocess.Popen[bytes] | None, seconds: float, address: str) -> None:
    for _ in range(int(seconds * 4)):
        if desk.done.wait(0.25):
            return
        if process is not None and process.poll() is not None and not desk.done.wait(1):
            raise DeviceError(f"{address}: what was started ended with status {process.returncode} and sent nothing")
    raise DeviceError(f"{address}: no result within {seconds:.0f} s; give it longer with --timeout")


@contextlib.contextmanager
def _serve_page(desk: _Desk, port: int) -> Iterator[int]:
    """On this machine's own address alone; gives the port."""
    handler = type("Handler", (_Handler,), {"desk": desk})
    try:
        server = http.server.ThreadingHTTPServer(("127.0.0.1", port), handler)
    except OSError as error:
        raise RequestError(f"port {port} is taken ({error.strerror}); leave it out, or name another") from error
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()


class _Handler(http.server.BaseHTTPRequestHandler):
    desk: _Desk

    def do_GET(self) -> None:
        path = self._path()
        content = None if path is None else self._content(path)
        if content is None:
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Type", _KINDS.get(Path(path or "index.html").suffix, "application/octet-stream"))
        self.send_header("Content-Length", str(len(content)))
        # A page may use threads only where nothing of others' runs beside it.
        self.send_header("Cross-Origin-Opener-Policy", "same-origin")
        self.send_header("Cross-Origin-Embedder-Policy", "require-corp")
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(content)

    def do_POST(self) -> None:
        path, size = self._path(), self.headers.get("Content-Length", "")
        if path not in ("result", "error") or not size.isdigit() or int(size) > MOST_BYTES or self.desk.done.is_set():
            self.send_error(404)
            return
        content = self.rfile.read(int(size))
        if path == "error":
            self.desk.error = content.decode(errors="replace")[:500]
        self.desk.result = content
        self.send_response(204)
        self.end_headers()
        self.desk.done.set()

    def _path(self) -> str | None:
        """What is asked for behind the token; None without it."""
        token, _, rest = self.path.lstrip("/").partition("?")[0].partition("/")
        return (rest or "index.html") if secrets.compare_digest(token.encode(), self.desk.token.encode()) else None

    def _content(self, name: str) -> bytes | None:
        if name == "request.json":
            return self.desk.request
        if name.startswith("entry/"):
            return _bundle_entry(self.desk.bundle, name.removeprefix("entry/"))
        folder, name = (
            (self.desk.runtime, name.removeprefix("runtime/")) if name.startswith("runtime/") else (_PAGES, name)
        )
        place = folder / name
        return place.read_bytes() if Path(name).name == name and place.is_file() else None

    def log_message(self, *_: Any) -> None:
        """Nothing: the address holds the token."""


def _bundle_entry(bundle: Path, name: str) -> bytes | None:
    with zipfile.ZipFile(bundle) as archive:
        return archive.read(name) if name in archive.namelist() else None


@contextlib.contextmanager
def _start_client(who: str | None, port: int, desk: _Desk) -> Iterator[subprocess.Popen[bytes] | None]:
    """The browser or node that was asked for, ended afterwards with what it started."""
    if who is None:
        yield None
        return
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        url = f"http://127.0.0.1:{port}/{desk.token}/"
        command = _node_command(url, desk, Path(folder)) if who == "node" else _browser_command(url, folder)
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _node_command(url: str, desk: _Desk, folder: Path) -> list[str]:
    node = shutil.which("node")
    if node is None:
        raise MissingBackend("web://node needs node: sudo apt-get install nodejs")
    for name, source in (("bench.js", "bench.mjs"), ("node.mjs", "node.mjs")):
        shutil.copy2(_PAGES / name, folder / source)
    return [node, str(folder / "node.mjs"), url, str(desk.runtime.resolve())]


def _browser_command(url: str, folder: str) -> list[str]:
    browser = next((place for name in _BROWSERS if (place := shutil.which(name))), None)
    if browser is None:
        raise MissingBackend("web://chromium needs Chromium: sudo apt-get install chromium")
    plain = ["--headless=new", "--disable-gpu", "--no-first-run", f"--user-data-dir={folder}"]
    # Nothing beside the page is to be fetched, nor to take the processor while it measures.
    plain += ["--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-extensions"]
    # In a container it runs as root, where its own sandbox cannot; the page is ours and loads nothing of others'.
    return [browser, *plain, *(["--no-sandbox"] if os.geteuid() == 0 else []), url]
