"""What a person is told who asks for help, mistypes, or wants a shell to complete."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from edgewise.__main__ import main


def left(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[object, str, str]:
    """Exit status, standard output and standard error of a command that leaves by itself."""
    with pytest.raises(SystemExit) as leave:
        main(arguments)
    out, err = capsys.readouterr()
    return leave.value.code, out, err


def test_the_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    assert left(capsys, "--version") == (0, f"edgewise {version('edgewise')}\n", "")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run", "demo", "--targt", "onnx"], "unrecognized argument: --targt. Did you mean '--target'"),
        (["report", "x", "--jsn"], "unrecognized argument: --jsn. Did you mean '--json'"),
        (["bench", "x", "--zzzzzz=3"], "unrecognized argument: --zzzzzz=3.\n"),
        (["list", "stages", "prune", "more"], "unrecognized argument: more.\n"),
        (["run"], "wanted a RECIPE, or --model and --data"),
    ],
)
def test_an_error_shows_the_usage_of_its_own_command(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    status, out, err = left(capsys, *arguments)
    assert (status, out) == (2, "") and err.startswith(f"usage: edgewise {arguments[0]} ") and words in err


@pytest.mark.parametrize("shell", ["bash", "zsh", "tcsh"])
def test_a_shell_is_told_every_command(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    for word in ("analyze", "bench", "completion", "verify", "max-drop", "recipes"):
        assert word in script, word


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
def test_bash_accepts_its_script(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["completion", "bash"]) == 0
    (tmp_path / "script").write_text(capsys.readouterr().out, encoding="utf-8")
    subprocess.run(["bash", "-n", str(tmp_path / "script")], check=True)


@pytest.mark.parametrize("arguments", [("run", "{}"), ("run", "demo", "--model", "{}"), ("analyze", "{}")])
@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("def build(): ...\n\ndef _helper(): ...\n\ndef small(): ...\n", "which function? Say {0}:build or {0}:small"),
        ("x = 3\n", "defines no function"),
        ("def broken(:\n", "could not be read"),
        (None, "there is no file"),
    ],
)
def test_a_file_without_a_function_lists_those_it_has(
    arguments: tuple[str, ...], text: str | None, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "net.py"
    if text is not None:
        path.write_text(text, encoding="utf-8")
    assert main([word.format(path) for word in arguments]) == 2
    assert words.format(path) in capsys.readouterr().err
    assert not (tmp_path / "store").exists()


def test_one_stage_tells_its_fields(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "stages", "fold"]) == 0
    assert "rest: Rest = 'depthwise'" in capsys.readouterr().out
    assert main(["list", "stages", "fold", "--json"]) == 0
    (field,) = json.loads(capsys.readouterr().out)["fields"]
    assert (field["name"], field["default"]) == ("rest", "'depthwise'")
    assert main(["list", "stages", "folt"]) == 2
    assert "Did you mean 'fold'" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments", [["run", "demoo"], ["run", "none.py"], ["run"], ["report", "nowhere"], ["--version"]]
)
def test_a_wrong_request_is_refused_before_torch_is_imported(arguments: list[str], tmp_path: Path) -> None:
    code = (
        "import sys\nfrom edgewise.__main__ import main\ntry: main(sys.argv[1:])\nexcept SystemExit: pass\n"
        "assert not {'torch', 'numpy'} & set(sys.modules), 'imported'"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("columns", [60, 80])
def test_a_list_breaks_its_lines_between_words(
    columns: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    assert main(["list", "stages"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= columns and any(line.startswith("    ") for line in lines)
