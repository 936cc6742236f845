"""The page in a browser: what axe-core finds, whether anything is wider than the window, how many sheets it prints on.

Needs Chromium or Chrome and axe-core's ``axe.min.js``, which EDGEWISE_AXE names or ``npm install axe-core`` puts into
``node_modules`` beside the tests; skipped without them.
"""

from __future__ import annotations

import html
import json
import os
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edgewise.report.document import Report
from edgewise.report.page import render_page

ROOT = Path(__file__).resolve().parents[3]
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
AXE = Path(os.environ.get("EDGEWISE_AXE", ROOT / "node_modules" / "axe-core" / "axe.min.js"))
BROWSER = next(filter(None, map(shutil.which, BROWSERS)), None)

pytestmark = pytest.mark.skipif(BROWSER is None, reason=f"none of {', '.join(BROWSERS)} is installed")


def browse(place: Path, *options: str) -> str:
    """What headless Chromium prints for the page at ``place``."""
    assert BROWSER is not None
    usual = (
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--hide-scrollbars",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        f"--user-data-dir={place.parent}/profile",
    )
    done = subprocess.run(
        [BROWSER, *usual, *options, place.as_uri()], capture_output=True, text=True, check=True, timeout=120
    )
    return done.stdout


def answered(report: Report, folder: Path, script: str, width: int = 1280, *options: str) -> Any:
    """The JSON that ``script``, run in the page, hands to ``tell``; the page's own policy is put aside for it.

    The page stands in a frame of ``width`` pixels: a headless window is never narrower than 500.
    """
    page = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", render_page(report))
    tell = "const tell = (found) => parent.postMessage(JSON.stringify(found), '*');"
    within = f"<script>{tell}\n{script}</script></body>"
    (folder / "page.html").write_text(page.replace("</body>", within), encoding="utf-8")
    place = folder / "frame.html"
    place.write_text(FRAME.format(width=width), encoding="utf-8")
    shown = browse(place, "--dump-dom", "--virtual-time-budget=20000", "--window-size=1400,900", *options)
    found = re.search(r'<pre id="answer">(.*?)</pre>', shown, re.DOTALL)
    assert found, "the page's script gave no answer"
    return json.loads(html.unescape(found.group(1)))


FRAME = """<!doctype html><html lang="en"><title>A frame</title><body style="margin: 0"><pre id="answer"></pre>
<script>addEventListener("message", (event) => {{ document.getElementById("answer").textContent = event.data; }});</script>
<iframe title="the page" src="page.html" style="border: 0; width: {width}px; height: 900px"></iframe></body></html>"""
DARK = "if (!matchMedia('(prefers-color-scheme: dark)').matches) tell('not dark');\n"
AUDIT = (
    "axe.run({resultTypes: ['violations']}).then((found) => tell(found.violations.map("
    "(v) => ({id: v.id, impact: v.impact, help: v.help, nodes: v.nodes.map((n) => n.html.slice(0, 160))}))))"
)


needs_axe = pytest.mark.skipif(
    not AXE.is_file(), reason="axe-core is missing: npm install axe-core, or EDGEWISE_AXE=axe.min.js"
)


@needs_axe
def test_axe_finds_nothing(any_run: Report, tmp_path: Path) -> None:
    assert answered(any_run, tmp_path, AXE.read_text(encoding="utf-8") + "\n" + AUDIT) == []


@needs_axe
def test_axe_finds_nothing_in_the_dark_either(passing: Report, tmp_path: Path) -> None:
    script = AXE.read_text(encoding="utf-8") + "\n" + DARK + AUDIT
    assert answered(passing, tmp_path, script, 400, "--blink-settings=preferredColorScheme=0") == []


@needs_axe
def test_axe_would_find_a_mark_without_words(passing: Report, tmp_path: Path) -> None:
    spoil = "document.querySelectorAll('.mark').forEach((mark) => mark.removeAttribute('aria-label'));\n"
    found = answered(passing, tmp_path, AXE.read_text(encoding="utf-8") + "\n" + spoil + AUDIT)
    assert "svg-img-alt" in [entry["id"] for entry in found]


@pytest.mark.parametrize("width", [400, 1280])
def test_nothing_is_wider_than_the_window(passing: Report, width: int, tmp_path: Path) -> None:
    script = """tell({inner: innerWidth, page: document.documentElement.scrollWidth,
    cards: [...document.querySelectorAll(".card")].map((c) => [c.scrollWidth - c.clientWidth, c.textContent.slice(0, 60)])})"""
    for place, row in enumerate(passing.rows):
        if row.latency is not None:  # the longest that stands below a ratio
            timed = replace(row.latency, baseline_ms=1234.5, ci95=(1000.25, 1000.75))
            passing.rows[place] = replace(row, latency=timed)
    found = answered(passing, tmp_path, script, width)
    assert found["inner"] == width >= found["page"]
    assert [text for over, text in found["cards"] if over > 0] == []


def test_the_keyboard_reaches_every_mark(passing: Report, tmp_path: Path) -> None:
    script = """
    const plot = document.querySelector("svg.plot"), marks = [...plot.querySelectorAll(".mark")], seen = new Set();
    plot.querySelector("[tabindex='0']").focus();
    for (const _ of marks) {
      seen.add(document.getElementById("tip").textContent);
      document.activeElement.dispatchEvent(new KeyboardEvent("keydown", {key: "ArrowRight", bubbles: true}));
    }
    const stops = plot.querySelectorAll("[tabindex='0']").length, open = !document.getElementById("tip").hidden;
    document.activeElement.dispatchEvent(new KeyboardEvent("keydown", {key: "Escape", bubbles: true}));
    tell({marks: marks.length, seen: seen.size, stops, open, closed: document.getElementById("tip").hidden});
    """
    found = answered(passing, tmp_path, script)
    assert found["marks"] == found["seen"] > 3
    assert (found["stops"], found["open"], found["closed"]) == (1, True, True)


def test_the_filter_hides_rows_and_marks_of_a_target(passing: Report, tmp_path: Path) -> None:
    script = """
    const seen = () => [...document.querySelectorAll('[data-group="target-0"]')].filter((e) => e.getClientRects().length);
    const before = seen().length; document.getElementById("show-target-0").click();
    tell({before, after: seen().length, others: document.querySelectorAll('[data-group="target-1"]')[0].getClientRects().length});
    """
    found = answered(passing, tmp_path, script)
    assert found["before"] > 2 and found["after"] == 0 and found["others"] > 0


def test_it_prints_on_few_sheets(passing: Report, tmp_path: Path) -> None:
    place = tmp_path / "page.html"
    place.write_text(render_page(passing), encoding="utf-8")
    browse(place, "--no-pdf-header-footer", f"--print-to-pdf={tmp_path / 'page.pdf'}")
    sheets = re.findall(rb"/Type\s*/Page\b", (tmp_path / "page.pdf").read_bytes())
    assert 1 <= len(sheets) <= 4
