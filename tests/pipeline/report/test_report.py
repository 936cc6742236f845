"""The report: rows to JSON and back, a file that is whole or absent, a terminal table, a page that trusts nothing."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, Literal

import pytest

from edgewise.errors import RequestError, StoreError
from edgewise.measure.values import Accuracy, Agreement, Difference, Latency
from edgewise.report import numbers
from edgewise.report.charts import draw_tradeoff, draw_waterfall
from edgewise.report.document import Report, Section
from edgewise.report.markup import sanitize_html
from edgewise.report.page import render_page, write_html
from edgewise.report.rows import ArtifactFile, Row
from edgewise.report.summary import open_points, summarize
from edgewise.report.terminal import terminal_table
from edgewise.store.json_values import decode, encode, encode_fields
from edgewise.store.machine import read_environment

ROOT = Path(__file__).resolve().parents[3]


def accuracy(right: int, delta: int = 0, n: int = 360) -> Accuracy:
    top1, half = right / n, 0.015
    change = Difference(
        delta=delta / n,
        ci95=(delta / n - 0.012, delta / n + 0.012) if delta else (0.0, 0.0),
        p_value=0.25 if delta else 1.0,
    )
    return Accuracy(top1=top1, n=n, ci95=(max(0.0, top1 - half), min(1.0, top1 + half)), vs_baseline=change)


def latency(p50: float, ratio: float, on: str = "onnx") -> Latency:
    return Latency(
        on=on,
        batch=1,
        threads=1,
        p50_ms=p50,
        p90_ms=p50 * 1.2,
        ratio_to_baseline=ratio,
        ci95=(ratio - 0.02, ratio + 0.03),
    )


def step(name: str, label: str, params: int, macs: int, right: int, ms: float, **changes: object) -> Row:
    row = Row(
        step=name,
        name=label,
        target=None,
        params=params,
        macs=macs,
        bytes=params * 4 + 9_000,
        accuracy=accuracy(right, right - 351),
        latency=latency(ms, ms / 0.412),
        verification=None,
        undelegated=(),
        verdict="pass",
        reason="",
        seconds=12.3,
    )
    return replace(row, **changes)  # type: ignore[arg-type]


def artifact(target: str, right: int, ms: float, **changes: object) -> Row:
    row = Row(
        step="artifact",
        target=target,
        params=31_210,
        macs=1_402_880,
        bytes=52_344,
        accuracy=accuracy(right, right - 351),
        latency=latency(ms, ms / 0.412, target),
        verification="runtime",
        undelegated=(),
        verdict="pass",
        reason="",
        seconds=8.1,
        precision="int8",
        agreement=Agreement(top1=358 / 360, max_abs=0.213, n=360),
        facts={"opset": 18, "fused": [19, 19]},
    )
    return replace(row, **changes)  # type: ignore[arg-type]


def report() -> Report:
    written = artifact(
        "coreml",
        0,
        1.0,
        accuracy=None,
        latency=None,
        verification="written",
        verdict="not-checked",
        agreement=None,
        precision="float16",
        reason="written only: Core ML's runtime does not exist on this host, and no evaluator of its file is installed",
    )
    failed = artifact(
        "xnnpack",
        340,
        0.512,
        verdict="fail",
        undelegated=("aten.mean.dim", "aten.mean.dim", "aten.view"),
        bytes=61_200,
        reason="top-1 fell by 3.06 points (95 % interval 1.86 to 4.26, n = 360); the recipe allows 1.00",
    )
    return Report(
        recipe={
            "name": "demo",
            "model": "resnet_tiny",
            "data": "digits",
            "targets": ["onnx", "xnnpack", "coreml"],
            "seed": 0,
            "stages": [{"stage": "Train", "epochs": 20, "lr": 0.1}, {"stage": "Prune", "channels": 0.5, "round_to": 8}],
            "limits": {"max_accuracy_loss": 0.01, "max_latency_ratio": 1.0, "max_bytes": None},
        },
        environment={
            "python": "3.11.7",
            "torch": "2.13.0",
            "cpu": "A processor",
            "threads": 1,
            "commit": "c82192b",
            "dirty": True,
            "packages": {"torch": "2.13.0", "onnx": "1.23.2"},
        },
        rows=[
            step("baseline", "", 78_042, 4_105_216, 351, 0.412),
            step("prune", "", 41_210, 2_052_608, 331, 0.301),
            step("finetune", "", 41_210, 2_052_608, 349, 0.299),
            step("separate", "", 31_210, 1_402_880, 322, 0.285),
            step("finetune", "", 31_210, 1_402_880, 350, 0.283),
            step("quantize", "QAT, 7-bit weights", 31_210, 1_402_880, 349, 0.6, latency=None),
            artifact("onnx", 350, 0.201),
            failed,
            written,
        ],
        artifacts=[ArtifactFile(target="onnx", path="artifacts/onnx/model.onnx", sha256="ab" * 32, bytes=52_344)],
        sections=[Section(title="Where the time goes", html="<table><tr><th>layer</th><td>0.1 ms</td></tr></table>")],
    )


def show(shown: Report, width: int, path: Path | None = None, encoding: str = "utf-8", colour: bool = False) -> str:
    from rich.console import Console

    raw = io.BytesIO()
    out = io.TextIOWrapper(raw, encoding=encoding)
    system: Literal["truecolor"] | None = "truecolor" if colour else None
    Console(file=out, width=width, color_system=system, force_terminal=colour, legacy_windows=False).print(
        terminal_table(shown, path)
    )
    out.flush()
    return raw.getvalue().decode(encoding)


class Elements(HTMLParser):
    """Tags in order, every attribute, and what stands inside each script, as a browser would take the page apart."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.scripts: list[str] = []
        self.text: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1] == "script" and self.cdata_elem == "script":
            self.scripts[-1] += data
        else:
            self.text.append(data)


# rows: to JSON and back


def test_a_row_has_the_contract_s_keys_in_their_order() -> None:
    document = encode_fields(artifact("onnx", 350, 0.2))
    wanted = "step target params macs bytes accuracy latency verification undelegated verdict reason seconds"
    assert list(document)[:12] == wanted.split()
    assert list(document["accuracy"])[:4] == ["top1", "n", "ci95", "vs_baseline"]
    assert list(document["accuracy"]["vs_baseline"])[:3] == ["delta", "ci95", "p_value"]
    assert list(document["latency"])[:7] == ["on", "batch", "threads", "p50_ms", "p90_ms", "ratio_to_baseline", "ci95"]
    assert list(document["agreement"].items())[:3] == [("top1", 358 / 360), ("max_abs", 0.213), ("n", 360)]


def test_rows_come_back_as_they_went() -> None:
    for row in report().rows:
        again = decode(Row, json.loads(json.dumps(encode_fields(row))))
        assert again == replace(row, facts=encode(row.facts))
    assert decode(Accuracy, encode_fields(accuracy(350))) == accuracy(350)
    assert decode(Latency, encode_fields(latency(1.0, 1.0))) == latency(1.0, 1.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"macs": None}, r"row\.macs: wanted a whole number, found NoneType None"),
        ({"params": True}, r"row\.params: wanted a whole number, found bool True"),
        ({"seconds": "12"}, r"row\.seconds: wanted a number, found str '12'"),
        ({"seconds": float("inf")}, r"row\.seconds: wanted a finite number, found inf"),
        ({"verdict": "ok"}, r"row\.verdict: wanted one of pass, fail, not-checked, found str 'ok'"),
        ({"undelegated": "conv"}, r"row\.undelegated: wanted a list, found str 'conv'"),
        ({"undelegated": ["conv", 1]}, r"row\.undelegated\[1\]: wanted a string, found int 1"),
        ({"facts": []}, r"row\.facts: wanted an object, found list \[\]"),
        ({"top_1": 0.5}, r"row: unknown key 'top_1'; known keys: step, target"),
        ({"accuracy": {"top1": 1.0}}, r"row\.accuracy: missing key 'n', 'ci95', 'vs_baseline'; found: top1"),
        ({"verification": "written"}, r"a file that was only written cannot pass"),
    ],
)
def test_a_row_that_does_not_fit_is_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        decode(Row, encode_fields(artifact("onnx", 350, 0.2)) | change)


def test_an_interval_has_two_ends() -> None:
    document = encode_fields(accuracy(350)) | {"ci95": [0.9]}
    with pytest.raises(ValueError, match=r"accuracy\.ci95: wanted a list of 2, found list \[0\.9\]"):
        decode(Accuracy, document)


def test_a_missing_key_is_named() -> None:
    document = encode_fields(step("baseline", "", 1, 1, 351, 1.0))
    del document["latency"]
    with pytest.raises(ValueError, match="row: missing key 'latency'; found: step, target"):
        decode(Row, document)


def test_only_finite_plain_values_are_encoded() -> None:
    with pytest.raises(ValueError, match="finite numbers only, found nan"):
        encode_fields(replace(report().rows[0], seconds=float("nan")))
    with pytest.raises(TypeError, match="a report holds JSON types, found complex"):
        encode_fields(replace(report().rows[0], facts={"a": 1j}))


# report.json


def test_report_json_comes_back_and_holds_what_the_contract_says(tmp_path: Path) -> None:
    path = report().write(tmp_path / "new")
    assert path == tmp_path / "new" / "report.json"
    document = json.loads(path.read_text(encoding="utf-8"))
    assert list(document) == ["schema", "recipe", "environment", "rows", "artifacts", "next", "sections"]
    assert document["schema"] == 1
    assert document["artifacts"] == [
        {"target": "onnx", "path": "artifacts/onnx/model.onnx", "sha256": "ab" * 32, "bytes": 52_344}
    ]
    assert Report.read(tmp_path / "new").to_json() == report().to_json()


def test_sections_are_no_part_of_a_report_without_any() -> None:
    assert "sections" not in Report(recipe={}, environment={}).to_json()


def document(**changes: object) -> str:
    empty = {"schema": 1, "recipe": {}, "environment": {}, "rows": [], "artifacts": []}
    return json.dumps({key: value for key, value in (empty | changes).items() if value is not None})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", r"report\.json is not JSON: .* in line 1"),
        ("[]", r"report\.json is no report: wanted an object, found list"),
        ('{"schema": 2}', "wanted schema 1, found 2; run the recipe again"),
        (document(environment=None, artifacts=None), "missing key 'environment', 'artifacts'"),
        (document(recipe=[]), "recipe: wanted an object, found list"),
        (document(rows={}), "rows: wanted a list, found dict"),
        (document(rows=[{}]), r"rows\[0\]: missing key 'step'"),
        (document(artifacts=[1]), r"artifacts\[0\]: wanted an object"),
        ("\xff", "is no report: .*utf-8"),
    ],
)
def test_a_file_that_is_no_report_is_refused_with_the_reason(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "report.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(RequestError, match=message):
        Report.read(tmp_path)


def test_a_folder_without_report_is_a_wrong_request(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"cannot read .*report\.json: No such file.*the folder that a run wrote"):
        Report.read(tmp_path)


def test_a_failed_write_leaves_the_old_report_and_no_scrap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = report().write(tmp_path).read_bytes()

    def full(self: Path, target: Path) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(StoreError, match=r"cannot write .*report\.json: No space left on device"):
        Report(recipe={}, environment={}).write(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]
    assert (tmp_path / "report.json").read_bytes() == old


def test_a_folder_that_is_a_file_cannot_be_written_to(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    with pytest.raises(StoreError, match="cannot write"):
        report().write(tmp_path / "out")


def test_a_section_holds_one_thing() -> None:
    with pytest.raises(ValueError, match="section 'a': wanted exactly one of html and figure"):
        Section(title="a")
    with pytest.raises(ValueError, match="exactly one"):
        Section(title="a", html="", figure={})


# environment


def test_environment_tells_the_machine_and_the_packages() -> None:
    found = read_environment(threads=3)
    assert found["python"] == ".".join(map(str, sys.version_info[:3]))
    assert found["torch"] == found["packages"]["torch"]
    assert found["threads"] == 3 and read_environment()["threads"] == found["cores"] >= 1
    assert found["cpu"] and found["platform"]
    assert encode(found) == found


def test_the_commit_is_the_tree_s_own_and_dirty_says_so(tmp_path: Path) -> None:
    def git(*words: str) -> str:
        identity = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
        return subprocess.run(
            ["git", *identity, *words], cwd=tmp_path, check=True, capture_output=True, text=True
        ).stdout.strip()

    assert read_environment(root=tmp_path)["commit"] is None
    git("init", "-q")
    git("commit", "-q", "--allow-empty", "-m", "first")
    head = git("rev-parse", "HEAD")
    clean = read_environment(root=tmp_path)
    assert clean["commit"] and head.startswith(clean["commit"]) and clean["dirty"] is False
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "file").write_text("new")
    assert read_environment(root=tmp_path)["dirty"] is True
    assert read_environment(root=tmp_path / "inner")["commit"] is None


def test_importing_the_report_imports_nothing_heavy() -> None:
    code = "import sys, edgewise.report, edgewise.report.rows; print(*{n.split('.')[0] for n in sys.modules})"
    loaded = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout.split()
    assert "edgewise" in loaded
    assert not {"torch", "numpy", "plotly", "jinja2", "markupsafe", "rich"} & set(loaded)


# words and numbers


@pytest.mark.parametrize(
    ("shown", "wanted"),
    [
        (numbers.count(999), "999"),
        (numbers.count(272_474), "272k"),
        (numbers.count(999_700), "1.00M"),
        (numbers.count(4_105_216), "4.11M"),
        (numbers.size(85_230), "85.2 kB"),
        (numbers.size(0), "0 B"),
        (numbers.size(None), "–"),
        (numbers.significant(0.4119), "0.412"),
        (numbers.significant(48.06), "48.1"),
        (numbers.significant(1234.4), "1234"),
        (numbers.significant(0), "0"),
        (numbers.percent(0.9173), "91.73"),
        (numbers.points(-0.0028), "−0.28"),
        (numbers.points(0.001), "+0.10"),
        (numbers.points(-0.00001), "0.00"),
        (numbers.half_width((0.9119, 0.9227)), "0.54"),
        (numbers.ratio(0.6249), "0.62×"),
    ],
)
def test_numbers_are_written_for_people(shown: str, wanted: str) -> None:
    assert shown == wanted


def test_the_summary_counts_and_names_the_smallest_file_that_passed() -> None:
    said = summarize(report())
    assert (said.verdict, said.title) == ("fail", "1 of 9 checks failed, 1 not checked")
    assert said.best.startswith(
        "Smallest file that passed: onnx int8, 52.3 kB where the baseline takes 321 kB, top-1 97.22 % (−0.28 p"
    )
    assert said.best.endswith("0.49× the baseline's time on onnx.")


def test_a_file_that_was_only_written_never_makes_a_pass() -> None:
    written = [row for row in report().rows if row.verification == "written"]
    alone = summarize(Report(recipe={}, environment={}, rows=written))
    assert (alone.verdict, alone.title, alone.best) == ("not-checked", "Nothing was checked", "")
    beside = summarize(Report(recipe={}, environment={}, rows=[report().rows[0], *written]))
    assert (beside.verdict, beside.title) == ("not-checked", "No file passed: 1 check passed, 1 not checked")
    single = summarize(Report(recipe={}, environment={}, rows=report().rows[:1]))
    assert single.title == "1 check passed"


# the terminal


@pytest.mark.parametrize("width", [80, 100, 140])
def test_every_row_is_one_line_of_the_terminal(width: int) -> None:
    lines = show(report(), width).splitlines()
    assert max(map(len, lines)) <= width
    for wanted in (
        r"^baseline .* 97\.50 ±1\.50 .* 78\.0k +4\.11M .* 1\.00× .*✓",
        r"^xnnpack int8 .*−3\.06 .*1\.24× +runtime +✗",
    ):
        assert sum(bool(re.search(wanted, line)) for line in lines) == 1
    assert ("✗ fail" in "".join(lines)) == (width > 80)


def test_reasons_stand_below_for_what_did_not_pass() -> None:
    text = show(report(), 200)
    assert (
        "✗ xnnpack int8: top-1 fell by 3.06 points (95 % interval 1.86 to 4.26, n = 360); the recipe allows 1.00"
        in text
    )
    assert "– coreml float16: written only" in text
    assert text.index("top-1 fell") > text.index("coreml float16 ")


def test_the_report_s_path_comes_last_and_whole() -> None:
    assert show(report(), 80, Path("out/report.html")).endswith("\nReport: out/report.html\n")
    path = Path("/a/very/long/way") / ("x" * 120) / "report.html"
    assert show(report(), 80, path).replace("\n", "").endswith(str(path))


def test_without_colour_and_without_unicode_the_table_still_speaks() -> None:
    assert "\x1b[" not in show(report(), 100) and "\x1b[" in show(report(), 100, colour=True)
    text = show(report(), 100, encoding="ascii")
    assert "x fail" in text and "+ pass" in text and "97.50 ~1.50" in text and "?" not in text


def test_a_name_can_steer_neither_markup_nor_terminal() -> None:
    rows = [step("baseline", "[red]\x1b[2Jname[/red]", 1, 1, 351, 1.0)]
    text = show(Report(recipe={}, environment={}, rows=rows), 100)
    assert "[red] [2Jname[/red]" in text and "\x1b" not in text


def test_a_report_without_rows_is_shown() -> None:
    assert "Nothing was checked" in show(Report(recipe={}, environment={}), 80)


# the charts


def test_tradeoff_shows_every_measured_row_with_its_interval() -> None:
    figure = draw_tradeoff(report().rows)
    assert figure is not None
    times, sizes = figure.panels
    names = {key.name: key.text for key in figure.keys}
    assert [names[mark.name] for mark in times.marks] == [
        "baseline",
        "prune",
        "finetune",
        "separate",
        "finetune (2)",
        "onnx int8",
        "xnnpack int8",
    ]
    assert "QAT, 7-bit weights" in [names[mark.name] for mark in sizes.marks] and len(sizes.marks) == 8
    first = times.marks[0]
    assert (first.x, sizes.marks[0].x) == (1.0, 78_042 * 4 + 9_000)
    assert first.y == pytest.approx(97.5) and first.y_range == (pytest.approx(96.0), pytest.approx(99.0))


def test_times_are_shares_of_each_runtime_s_own_baseline() -> None:
    """A file that takes 0.512 ms where its runtime's baseline takes 0.412 is slower, whatever another runtime takes."""
    rows = report().rows
    figure = draw_tradeoff(rows)
    assert figure is not None
    times = figure.panels[0]
    assert times.upright == (1.0,)
    for mark in times.marks:
        timed = rows[int(mark.name) - 1].latency
        assert timed is not None and mark.x == timed.ratio_to_baseline and mark.x_range == timed.ci95
    slow = times.marks[-1]
    assert slow.x == pytest.approx(0.512 / 0.412) and slow.x > 1 and slow.fill == "crossed"
    assert times.x.place(slow.x) > times.x.place(1.0)


def test_a_mark_s_fill_tells_the_verdict() -> None:
    rows = report().rows
    figure = draw_tradeoff([replace(rows[0], verdict=verdict) for verdict in ("pass", "fail", "not-checked")])
    assert figure is not None
    assert [key.fill for key in figure.keys] == ["solid", "crossed", "hollow"]


def test_a_chart_s_legend_names_every_row_once_with_its_number_in_the_table() -> None:
    figure = draw_tradeoff(report().rows)
    assert figure is not None
    assert [key.name for key in figure.keys] == ["1", "2", "3", "4", "5", "6", "7", "8"]
    colour = {key.text: key.colour for key in figure.keys}
    assert colour["finetune"] == colour["finetune (2)"] != colour["prune"]
    assert colour["onnx int8"] == colour["xnnpack int8"]


def test_the_size_axis_has_ticks_where_people_count() -> None:
    figure = draw_tradeoff(report().rows)
    assert figure is not None
    axis = figure.panels[1].x
    assert axis.log and axis.ticks == ((50_000, "50 kB"), (100_000, "100 kB"), (200_000, "200 kB"))


def test_waterfall_is_computed_against_the_baseline() -> None:
    bars = draw_waterfall(report().rows)
    assert bars is not None
    change, time, macs, params = (column.values for column in bars.columns)
    assert bars.names[-2:] == ("finetune (2)", "QAT, 7-bit weights")
    assert change[:2] == (0.0, pytest.approx(-20 / 360 * 100))
    assert time[1] == pytest.approx(0.301 / 0.412 * 100) and time[-1] is None
    assert macs[1] == pytest.approx(50.0) and params[-1] == pytest.approx(31_210 / 78_042 * 100)
    said = [column.texts for column in bars.columns]
    assert said[1][-1] == "not measured" and said[0][1] == "−5.56" and said[2][1] == "50"


def test_long_names_of_one_beginning_keep_bars_of_their_own() -> None:
    rows = [
        step(name, "a very long name of a step, twice " + name, 10, 10, 351, 1.0) for name in ("baseline", "x", "y")
    ]
    bars = draw_waterfall(rows)
    assert bars is not None
    assert bars.names == (
        "a very long name …e baseline",
        "a very long name …p, twice x",
        "a very long name …p, twice y",
    )


def test_there_is_no_chart_without_measurements() -> None:
    unmeasured = [replace(row, accuracy=None) for row in report().rows]
    assert draw_tradeoff(unmeasured) is None and draw_tradeoff([]) is None
    assert draw_waterfall(report().rows[:1]) is None and draw_waterfall([]) is None


# the page


def test_the_page_holds_every_row_and_reason_and_digest(tmp_path: Path) -> None:
    path = write_html(report(), tmp_path / "new")
    assert path == tmp_path / "new" / "report.html" and [p.name for p in path.parent.iterdir()] == ["report.html"]
    text = " ".join(Elements(path.read_text(encoding="utf-8")).text)
    for wanted in (
        "finetune (2)",
        "QAT, 7-bit weights",
        "the recipe allows 1.00",
        "ab" * 32,
        "aten.mean.dim",
        "× 2",
        "c82192b",
        "round_to",
        "0.1 ms",
        "97.22",
        "−0.28",
        "1 of 9 checks failed",
        "Not shown: coreml float16",
    ):
        assert wanted in text, wanted


def test_the_page_tells_the_peak_memory_where_it_was_measured(tmp_path: Path) -> None:
    shown = report()
    assert " to run" not in "".join(Elements(write_html(shown, tmp_path).read_text(encoding="utf-8")).text).replace(
        "; to run", ""
    )
    shown.rows[:] = [replace(row, peak_bytes=1_234_567) if row.target == "onnx" else row for row in shown.rows]
    text = " ".join(Elements(write_html(shown, tmp_path).read_text(encoding="utf-8")).text)
    assert text.count("1.23 MB to run") == 1


def test_the_page_is_the_same_for_the_same_report(tmp_path: Path) -> None:
    assert write_html(report(), tmp_path / "a").read_bytes() == write_html(report(), tmp_path / "b").read_bytes()


def test_the_page_loads_nothing_and_runs_only_its_own_scripts(tmp_path: Path) -> None:
    page = Elements(write_html(report(), tmp_path).read_text(encoding="utf-8"))
    policies = [value for name, value in page.attributes if name == "content" and value and "default-src" in value]
    assert policies and "default-src 'none'" in policies[0]
    digests = ["sha256-" + base64.b64encode(hashlib.sha256(s.encode()).digest()).decode() for s in page.scripts]
    assert len(digests) == 1 and all(f"'{digest}'" in policies[0] for digest in digests)
    linked = [value for name, value in page.attributes if name in ("src", "href", "srcset", "action")]
    assert set(linked) == {"data:,", "#rows", "#row-8", "#row-9"}


def test_the_page_is_small(tmp_path: Path) -> None:
    assert write_html(report(), tmp_path).stat().st_size < 100_000


def test_the_first_screen_tells_what_failed_and_what_is_open(tmp_path: Path) -> None:
    page = write_html(report(), tmp_path).read_text(encoding="utf-8")
    head = " ".join(" ".join(Elements(page[: page.index("</header>")]).text).split())
    assert head.index("xnnpack int8 : top-1 fell by 3.06 points") < head.index("coreml float16 : written only")
    shown = open_points(report().rows)
    assert [(point.number, point.verdict) for point in shown] == [(8, "fail"), (9, "not-checked")]


def test_a_step_that_a_later_one_is_judged_for_is_no_open_point() -> None:
    rows = [
        step("baseline", "", 1, 1, 351, 1.0),
        step("prune", "", 1, 1, 340, 1.0, verdict="not-checked"),
        step("finetune", "", 1, 1, 350, 1.0),
        step("calibrate", "", 1, 1, 350, 1.0, verdict="not-checked"),
        step("quantize", "", 1, 1, 350, 1.0),
        step("fold", "", 1, 1, 350, 1.0, verdict="not-checked"),
    ]
    assert [point.number for point in open_points(rows)] == [6]
    rows[2] = replace(rows[2], target="onnx")
    assert [point.number for point in open_points(rows)] == [2, 6], "a file does not stand for the step before it"


HOSTILE = "</script></title></textarea>--><script>alert(1)</script><img src=x onerror=alert(1)>\"'`{{ 7 * 7 }}"


def hostile() -> Report:
    clean = report()
    words: dict[str, Any] = {
        "name": HOSTILE,
        "reason": HOSTILE,
        "undelegated": (HOSTILE,),
        "facts": {HOSTILE: [HOSTILE]},
    }
    rows = [
        replace(
            row,
            step=row.step if row.step in ("baseline", "artifact") else HOSTILE,
            target=row.target and HOSTILE,
            latency=row.latency and replace(row.latency, on=HOSTILE),
            **words,
        )
        for row in clean.rows
    ]
    figure = {"data": [{"type": "bar", "x": [HOSTILE], "y": [1], "name": HOSTILE, "marker": {"color": HOSTILE}}]}
    return Report(
        recipe={"name": HOSTILE, "model": "<script>", HOSTILE: {HOSTILE: [HOSTILE, {"a": HOSTILE}]}},
        environment={HOSTILE: HOSTILE},
        rows=rows,
        artifacts=[ArtifactFile(target=HOSTILE, path=HOSTILE, sha256=HOSTILE, bytes=1)],
        sections=[Section(title=HOSTILE, html=HOSTILE), Section(title=HOSTILE, figure=figure)],
    )


def test_nothing_that_came_with_the_report_becomes_markup(tmp_path: Path) -> None:
    page = Elements(write_html(hostile(), tmp_path).read_text(encoding="utf-8"))
    assert page.tags.count("script") == 1 and "img" not in page.tags
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert "{{ 7 * 7 }}" in " ".join(page.text)
    assert not [
        value for name, value in page.attributes if name in ("fill", "stroke", "style") and "script" in str(value)
    ]


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ("<p>a <b>b</b></p>", "<p>a <b>b</b></p>"),
        ('<td colspan="2" onclick="x()" style="a">1</td>', '<td colspan="2">1</td>'),
        ("<script>alert(1)</script>", "&lt;script&gt;alert(1)&lt;/script&gt;"),
        ('<a href="javascript:x">y</a>', "&lt;a href=&quot;javascript:x&quot;&gt;y&lt;/a&gt;"),
        ('<img src="data:image/png;base64,AA==" alt="x" onload="y">', '<img src="data:image/png;base64,AA==" alt="x">'),
        ('<img src="http://a/b.png">', "&lt;img src=&quot;http://a/b.png&quot;&gt;"),
        ("</div></main><ul><li>open", "&lt;/div&gt;&lt;/main&gt;<ul><li>open</li></ul>"),
        ("<b><i>x</b> y", "<b><i>x</i></b> y"),
        ("&lt;script&gt; a & b", "&lt;script&gt; a &amp; b"),
        ("<!-- hidden --><p>x", "<p>x</p>"),
    ],
)
def test_markup_from_elsewhere_is_reduced_to_harmless_elements(given: str, wanted: str) -> None:
    assert sanitize_html(given) == wanted


def test_a_page_without_rows_needs_no_script(tmp_path: Path) -> None:
    page = Elements(write_html(Report(recipe={}, environment={}), tmp_path).read_text(encoding="utf-8"))
    assert "script" not in page.tags and "No step has finished yet." in " ".join(page.text)


def test_the_backends_share_is_shown_on_the_page_and_in_the_terminal(tmp_path: Path) -> None:
    operators = {"conv": {"delegated": 2, "undelegated": 1, "macs": 400, "undelegated_macs": 100}}
    told = {"macs": 400, "undelegated_macs": 100, "undelegated_share": 0.25, "by_operator": operators}
    facts = {"coverage": told, "operators": {"quantize": 3, "DequantizeLinear": 4}}
    shown = report()
    shown.rows[:] = [replace(row, facts=facts) if row.target == "onnx" else row for row in shown.rows]
    assert "int8 kernels compute: onnx" in show(shown, 200) and "75.0%" in show(shown, 200)
    page = write_html(shown, tmp_path).read_text(encoding="utf-8")
    assert "75.0% of 400 MACs; 3 quantize, 4 dequantize" in page
    assert "<td><code>conv</code></td><td>2</td><td>1</td><td>400</td>" in page


def test_many_facts_of_one_kind_are_a_table_and_numbers_are_short(tmp_path: Path) -> None:
    costs = [{"layer": "conv1", "kl": 0.00012345678}, {"layer": "conv2", "kl": 0.5}]
    shown = report()
    shown.rows[0] = replace(shown.rows[0], facts={"sensitivity": costs, "trials": [{"ratio": 0.5}, {"macs": 3}]})
    page = write_html(shown, tmp_path).read_text(encoding="utf-8")
    told = " ".join(Elements(page).text)
    assert "2 entries" in told and page.count('<th scope="col">kl</th>') == 1
    assert "0.0001235" in told and "0.00012345678" not in told
    assert '<th scope="col">ratio</th>' not in page.split("Steps and files")[1], (
        "entries that differ in kind stay a list"
    )


def test_files_of_one_target_share_a_shape_and_none_looks_like_another() -> None:
    shown = report()
    files = [row for row in shown.rows if row.target is not None]
    figure = draw_tradeoff([*shown.rows, *(replace(row, precision="float32") for row in files)])
    assert figure is not None
    looks = {key.text: (key.shape, key.colour) for key in figure.keys}
    assert looks["onnx float32"][0] == looks["onnx int8"][0] != looks["xnnpack int8"][0]
    assert len({looks[name] for name in looks if "int8" in name or "float" in name}) == 4


def test_a_run_that_was_stopped_is_no_pass_and_says_first_what_stopped_it(tmp_path: Path) -> None:
    stopped = Report(
        recipe={"targets": ["onnx"]}, environment={}, rows=report().rows[:1], stopped="prune: nothing can go <b>"
    )
    said = summarize(stopped)
    assert (said.verdict, said.title) == ("fail", "The run stopped after 1 step")
    assert said.best == "prune: nothing can go <b>."
    stopped.write(tmp_path)
    assert Report.read(tmp_path) == stopped
    page = render_page(stopped)
    assert (
        '<div class="banner fail">\n<strong>✗ The run stopped after 1 step</strong>\n<p>prune: nothing can go &lt;b&gt;'
        in page
    )
    nothing = summarize(Report(recipe={"targets": ["onnx"]}, environment={}, stopped="no memory."))
    assert (nothing.title, nothing.best) == ("The run stopped before its first step was done", "no memory.")


def test_a_run_that_has_no_file_yet_is_no_pass() -> None:
    said = summarize(Report(recipe={"targets": ["onnx"]}, environment={}, rows=report().rows[:1]))
    assert (said.verdict, said.title) == ("not-checked", "Not finished, no file yet: 1 check passed")


def test_stopped_must_be_a_text() -> None:
    with pytest.raises(ValueError, match="stopped: wanted a text, found int"):
        Report.from_json(report().to_json() | {"stopped": 3})
