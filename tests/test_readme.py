"""The code blocks of the README and of the pages under docs/ run or parse, and what they link to is there."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCKS = [
    block for page in PAGES for block in re.findall(r"```sh\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
]
LINES = [line.strip() for block in BLOCKS for line in block.splitlines() if line.strip() and not line.startswith("#")]
QUICK = [line for line in LINES if re.match(r"edgewise (list|analyze|--help)", line)]


@pytest.mark.parametrize("line", QUICK)
def test_quick_commands_run(line: str, tmp_path: Path) -> None:
    words = [str(tmp_path / word) if word.endswith(".html") else word for word in shlex.split(line)]
    done = subprocess.run(
        [sys.executable, "-m", "edgewise", *words[1:]], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout


def test_there_are_quick_commands() -> None:
    assert len(QUICK) >= 3


def test_every_nox_session_named_exists() -> None:
    sessions = set(re.findall(r"^def (\w+)\(session", (ROOT / "noxfile.py").read_text(encoding="utf-8"), re.MULTILINE))
    named = {name for line in LINES for name in re.findall(r"nox -s (\w+)", line)}
    assert {"deploy", "tests"} <= named
    assert named <= sessions | {"onnx", "xnnpack", "coreml"}


def test_every_pipeline_command_parses() -> None:
    from edgewise.__main__ import _parser

    for line in LINES:
        if line.startswith("edgewise ") and "--help" not in line:
            _parser().parse_args(shlex.split(line)[1:])


def test_a_recipe_block_is_a_recipe(tmp_path: Path) -> None:
    from edgewise.catalogue import find_recipe

    (block,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    (tmp_path / "mine.py").write_text(block, encoding="utf-8")
    assert find_recipe(f"{tmp_path / 'mine.py'}:smaller").targets == ("onnx", "xnnpack")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        assert "://" in target or (page.parent / target).exists(), target


def test_the_readme_is_short() -> None:
    """What comes in, what comes out, the two commands, everyday use and one own network; the rest has pages."""
    assert len(README.splitlines()) < 170
