"""The command line: exit statuses, standard output and what an error tells."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from edgewise.__main__ import main

ROOT = Path(__file__).parents[3]

RECIPES = """
from edgewise.stages.train import Train
from edgewise.stages.prune import Prune
from edgewise.verify.gates import Limits
from edgewise.recipe import Recipe
from edgewise.stages.training.settings import Training


def _recipe(**changes):
    train = Train(training=Training(epochs=1, lr=0.1))
    return Recipe(**({"name": "mine", "model": "tiny_resnet", "data": "digits", "baseline": train} | changes))


def plain():
    return _recipe()


def greedy():
    return _recipe(stages=(Prune(channels=1.5),))


def negative():
    return _recipe(limits=Limits(max_drop=-0.1))


def nowhere():
    return _recipe(targets=())


def number():
    return 3
"""


@pytest.fixture
def recipes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's recipe file, with the store beside it."""
    monkeypatch.setenv("EDGEWISE_STORE", str(tmp_path / "store"))
    path = tmp_path / "recipe.py"
    path.write_text(RECIPES, encoding="utf-8")
    return path


def fresh(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The command in an interpreter of its own."""
    return subprocess.run(
        [sys.executable, "-m", "edgewise", *arguments],
        cwd=ROOT, capture_output=True, text=True, check=False, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def refused(capsys: pytest.CaptureFixture[str], *arguments: str, status: int = 2) -> str:
    """What the command says on standard error while it refuses."""
    assert main(arguments) == status
    out, err = capsys.readouterr()
    assert out == ""
    err = re.sub(r"^(  .+ …\n)+", "", err)  # what takes a second is told before
    assert err.startswith("error: ")
    assert "Traceback" not in err
    return err


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], *[["list", kind] for kind in (
    "models", "data", "targets", "stages", "recipes")]])  # fmt: skip
def test_help_and_lists_do_not_import_torch(arguments: list[str]) -> None:
    code = "import sys\nfrom edgewise.__main__ import main\ntry: status = main(sys.argv[1:])\nexcept SystemExit as leave: status = leave.code\nassert not {'torch', 'numpy'} & set(sys.modules), 'imported'\nsys.exit(status)"
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout.splitlines()) >= 3


@pytest.mark.parametrize(
    ("kind", "known"),
    [
        ("models", "tiny_resnet"),
        ("data", "digits"),
        ("targets", "onnx"),
        ("stages", "prune"),
        ("recipes", "demo"),
    ],
)
def test_list_json_names_and_summarises(kind: str, known: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", kind, "--json"]) == 0
    out, err = capsys.readouterr()
    document = json.loads(out)
    assert err == "" and list(document) == [kind]
    assert all(set(entry) >= {"name", "summary"} and entry["summary"] for entry in document[kind])
    names = [entry["name"] for entry in document[kind]]
    assert known in names and len(names) == len(set(names))


@pytest.mark.parametrize("arguments", [[], ["fly"], ["list", "planets"], ["run"], ["bench"], ["verify"]])
def test_malformed_command_lines_exit_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as leave:
        main(arguments)
    assert leave.value.code == 2
    assert capsys.readouterr().err.startswith("usage: edgewise")


@pytest.mark.parametrize(
    ("options", "near"),
    [
        (["demoo"], "demo"),
        (["demo", "--model", "resnet19"], "resnet1"),
        (["demo", "--target", "onx"], "onnx"),
        (["demo", "--data", "digit"], "digits"),
    ],
)
def test_unknown_names_get_the_nearest_spelling(
    options: list[str], near: str, recipes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("onnxruntime")
    targets = [] if "--target" in options else ["--target", "onnx"]
    message = refused(capsys, "run", *options, *targets, "--out", str(tmp_path / "out"))
    assert f"Did you mean '{near}" in message
    assert "Choices: " in message
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(
    ("function", "wanted"),
    [
        ("greedy", "Prune.channels must lie in 0 … 1"),
        ("negative", "max_drop must lie in 0 … 1, found -0.1"),
        ("nowhere", "names no target"),
        ("number", "returned int; wanted an edgewise.Recipe"),
        ("absent", "has no function 'absent'"),
    ],
)
def test_wrong_recipes_are_refused_before_anything_runs(
    function: str, wanted: str, recipes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert wanted in refused(capsys, "run", f"{recipes}:{function}", "--out", str(tmp_path / "out"))
    assert not (tmp_path / "store").exists()
    assert not (tmp_path / "out").exists()


def test_recipe_file_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "there is no file" in refused(capsys, "run", f"{tmp_path / 'none.py'}:main")


def test_weights_that_do_not_fit_list_the_keys(
    recipes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("onnxruntime")
    weights = tmp_path / "weights.pt"
    torch.save({"linear.weight": torch.zeros(10, 3), "strange.key": torch.zeros(1)}, weights)
    message = refused(capsys, "run", f"{recipes}:plain", "--weights", str(weights), "--out", str(tmp_path / "out"))
    assert "missing (" in message
    assert "unexpected (1):\n      strange.key" in message
    assert "linear.weight: wanted [10, 128], found [10, 3]" in message
    assert not (tmp_path / "store").exists()


def test_missing_backend_exits_3_with_the_install_line(
    recipes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = importlib.util.find_spec

    def without_onnx(name: str, package: str | None = None) -> Any:
        return None if name.startswith("onnx") else found(name, package)

    monkeypatch.setattr(importlib.util, "find_spec", without_onnx)
    message = refused(capsys, "run", f"{recipes}:plain", "--out", str(tmp_path / "out"), status=3)
    assert "onnxruntime" in message
    assert 'python -m pip install -e ".[onnx]"' in message


def test_debug_shows_the_traceback_and_nothing_else_does() -> None:
    plain, debug = fresh("run", "nonesuch"), fresh("run", "nonesuch", "--debug")
    assert plain.returncode == 2 and "Traceback" not in plain.stderr
    assert debug.returncode != 0 and "Traceback" in debug.stderr and "RequestError" in debug.stderr
    assert plain.stdout == debug.stdout == ""


def test_analyze_json_keys_and_totals(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["analyze", "tiny_resnet", "--json"]) == 0
    out, err = capsys.readouterr()
    document = json.loads(out)
    assert err == ""
    assert list(document) == ["model", "input_shape", "layers", "totals", "unused"]
    assert (document["model"], document["input_shape"]) == ("tiny_resnet", [1, 8, 8])
    stem = next(layer for layer in document["layers"] if layer["operator"] == "conv2d")
    # 32 filters of 3×3 over one channel, at each of 8×8 places.
    assert (stem["params"], stem["macs"], stem["output"]) == (288, 288 * 64, [1, 32, 8, 8])
    assert (stem["kernel"], stem["stride"], stem["receptive_field"]) == ([3, 3], [1, 1], [3, 3])
    for key in ("params", "macs"):
        assert document["totals"][key] == sum(layer[key] for layer in document["layers"])


def test_analyze_at_another_size(capsys: pytest.CaptureFixture[str]) -> None:
    totals = {}
    for size in (("8", "8"), ("16", "32")):
        assert main(["analyze", "tiny_resnet", "--json", "--input-size", *size]) == 0
        document = json.loads(capsys.readouterr().out)
        assert document["input_shape"] == [1, int(size[0]), int(size[1])]
        stem = next(layer for layer in document["layers"] if layer["operator"] == "conv2d")
        totals[size] = (document["totals"]["params"], stem["macs"])
    (params, macs), (wide_params, wide_macs) = totals.values()
    assert wide_params == params
    assert wide_macs == 8 * macs


def test_analyze_table_and_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = tmp_path / "net.html"
    assert main(["analyze", "tiny_resnet", "--picture", str(picture)]) == 0
    assert "tiny_resnet at 1×8×8" in capsys.readouterr().out
    assert picture.read_text(encoding="utf-8").lstrip().lower().startswith("<!doctype html")


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (["analyze", "tiny_resnt"], "Did you mean 'tiny_resnet'"),
        (["analyze", "tiny_resnet", "--input-size", "0", "8"], "wanted sides from 1 to 8192"),
        (["analyze", "lenet5", "--input-size", "4", "4"], "conv2"),
        (["report", "no/such/folder"], "no/such/folder"),
        (["verify", "no/such/file", "--data", "digits"], "there is no file"),
        (["bench", "no/such/file"], "there is no file"),
        (["bench", "no/such/file", "--threads", "0"], "at least 1 thread"),
        (["bench", "no/such/file", "--seconds", "0"], "a positive time"),
    ],
)
def test_requests_that_cannot_be_met(arguments: list[str], wanted: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert wanted in refused(capsys, *arguments)


def test_an_error_of_our_own_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(kind: str) -> list[Any]:
        raise ZeroDivisionError(kind)

    monkeypatch.setattr("edgewise.catalogue.list_entries", broken)
    with pytest.raises(ZeroDivisionError):
        main(["list", "models"])


def test_interruption_has_its_own_status(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def stopped(kind: str) -> list[Any]:
        raise KeyboardInterrupt

    monkeypatch.setattr("edgewise.catalogue.list_entries", stopped)
    assert main(["list", "models"]) == 130
    assert "interrupted" in capsys.readouterr().err


WRONG = {
    "misspelt": ("Prune(chanels=0.5)", "Prune has no field 'chanels'. Did you mean 'channels'?"),
    "text": ("Training(epochs='3', lr=0.1)", "Training.epochs: wanted a valid whole number, found str '3'"),
    "adam": ("Training(epochs=3, lr=0.1, optimizer='adam')", "Did you mean 'adamw'?"),
    "momentum": ("Training(epochs=3, lr=0.1, momentum=5)", "Training.momentum must lie in 0 … 1, 1 excluded, found 5"),
    "order": ("Training(epochs=3, lr=0.1, channels_last='no')", "Training.channels_last: wanted a valid boolean"),
    "endless": ("Limits(max_latency_ratio=float('inf'))", "Limits.max_latency_ratio must lie in"),
    "packaging": ("Packaging(palete_bits=4)", "palete_bits"),
    "zero": ("1 / 0", "ZeroDivisionError: division by zero (recipe.py, line"),
    "away": ("_recipe(name='../../etc')", "Recipe.name: wanted letters"),
    "gone": (
        "_recipe(stages=(Prune(channels=0.5, keep=('conv9',)),))",
        "Prune.keep names 'conv9', which is no layer of",
    ),
    "palette": ("_recipe(candidates=('palette',))", "target 'onnx' can write no file of this recipe"),
}


@pytest.mark.skipif(importlib.util.find_spec("onnxruntime") is None, reason="onnxruntime is not installed")
@pytest.mark.parametrize("name", WRONG)
def test_whatever_is_wrong_with_a_recipe_is_one_line_before_anything_is_trained(
    recipes: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    code, words = WRONG[name]
    imports = "from edgewise.targets import Packaging\nfrom edgewise.stages.quantize import Quantize\n"
    recipes.write_text(f"{imports}{RECIPES}\n\ndef wrong():\n    return {code}\n", encoding="utf-8")
    said = refused(capsys, "run", f"{recipes}:wrong", "--out", str(recipes.parent / "out"))
    assert words in said and said.count("\n") == 1
    assert not (recipes.parent / "store").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ("run", "x" * 300),
        ("run", f"{'x' * 300}.py:f"),
        ("verify", "x" * 300),
        ("bench", "x" * 300),
        ("report", "x" * 300),
        ("analyze", "x" * 300),
        ("analyze", "resnet20", "--input-size", "1000000", "1000000"),
        ("analyze", "resnet20", "--input-size", "-3", "8"),
        ("run", "demo", "--input-size", "1000000", "1000000"),
        ("verify", "README.md", "--input-size", "0", "0"),
        ("bench", "README.md", "--input-size", "1000000", "8"),
        ("verify", "/dev/zero"),
        ("bench", "/dev/zero"),
    ],
)
def test_arguments_that_nobody_expects(
    arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEWISE_STORE", str(tmp_path / "store"))
    said = refused(capsys, *arguments)
    assert said.startswith("error: ") and "Traceback" not in said


def test_a_path_cannot_move_the_cursor(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = refused(capsys, "verify", str(tmp_path / "net\x1b[2J\x07\u202e.onnx"))
    assert r"net\x1b[2J\x07\u202e.onnx" in said and not {"\x1b", "\x07", "\u202e"} & set(said)


def test_a_line_break_in_a_path_makes_up_no_line_of_its_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = refused(capsys, "verify", str(tmp_path / "net\nall checks passed.onnx"))
    assert [line for line in said.splitlines() if not line.startswith(" ")] == said.splitlines()[:1]


def test_a_report_without_the_files_that_were_asked_for_is_no_success(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = {"schema": 1, "recipe": {"targets": ["onnx", "xnnpack"]}, "environment": {}, "rows": [], "artifacts": []}
    (tmp_path / "report.json").write_text(json.dumps(report), encoding="utf-8")
    assert main(["report", str(tmp_path), "--json"]) == 1
    said = capsys.readouterr().err
    assert "no file for onnx" in said and "no file for xnnpack" in said
    one = {"target": "onnx", "path": "artifacts/onnx/net.onnx", "sha256": "0" * 64, "bytes": 1}
    report |= {"recipe": {"targets": ["onnx"]}, "artifacts": [one]}
    (tmp_path / "report.json").write_text(json.dumps(report), encoding="utf-8")
    assert main(["report", str(tmp_path), "--json"]) == 1  # nothing says what came of it
    row = {
        "step": "artifact", "target": "onnx", "params": 1, "macs": 1, "bytes": 1, "accuracy": None, "latency": None,
        "verification": "runtime", "undelegated": [], "verdict": "pass", "reason": "", "seconds": 0.0,
    }  # fmt: skip
    report["rows"] = [row]
    (tmp_path / "report.json").write_text(json.dumps(report), encoding="utf-8")
    assert main(["report", str(tmp_path), "--json"]) == 0


def test_a_request_to_end_says_a_sentence(tmp_path: Path) -> None:
    code = "import sys, time\nimport edgewise.__main__ as main\n"
    code += (
        "main.run_guarded = lambda work, old=main.run_guarded: old(lambda: (print(1, flush=True), time.sleep(60)))\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", f"{code}sys.exit(main.main(['list', 'models']))"],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None and process.stdout.readline() == "1\n"
    process.terminate()
    _, said = process.communicate(timeout=60)
    assert process.returncode == 143
    assert said == "terminated: finished steps are kept, and the same command goes on from there\n"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["demo", "--model", "resnet19"], "unknown model"),
        (["demo", "--model", "none.py:build"], "there is no file none.py"),
        (["demo", "--data", "digit"], "unknown data set"),
        (["demo", "--target", "onx"], "unknown target"),
        (["demo", "--runtime", "onx"], "unknown target"),
        (["demo", "--weights", "none.pt"], "there is no weights file none.pt"),
        (["none.py:mine"], "there is no file none.py"),
    ],
)
def test_a_mistyped_name_is_told_before_torch_is_imported(
    options: list[str], words: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever wants torch here would come after the words were checked, and say something else."""
    for name in ("torch", "edgewise.recipes", "edgewise.run", "edgewise.run.request"):
        monkeypatch.setitem(sys.modules, name, None)
    assert words in refused(capsys, "run", *options)
