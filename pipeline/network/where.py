"""Where in a user's own code something happens: the file, the line and what stands there."""

from __future__ import annotations

import linecache
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import FrameType

from edgewise.store import sources, user_code


def line_of(error: BaseException) -> str | None:
    """The innermost line of the user's code that ``error`` came through; None: it came through none of it."""
    place = None
    for link in _chain(error):
        step = link.__traceback__
        while step is not None:
            if _is_the_users(step.tb_frame.f_code.co_filename):
                place = _describe_line(step.tb_frame.f_code.co_filename, step.tb_lineno)
            step = step.tb_next
        if place is not None:
            return place
    return None


def current_line() -> str | None:
    """The line of the user's network that is being run: the innermost one before the code of ours that runs it."""
    left_ours = False
    for frame in _frames_outwards(sys._getframe(1)):
        ours = sources.is_ours(Path(frame.f_code.co_filename))
        if left_ours and ours:
            return None
        left_ours = left_ours or not ours
        if not ours and _is_the_users(frame.f_code.co_filename):
            return _describe_line(frame.f_code.co_filename, frame.f_lineno)
    return None


def line_in_trace(trace: str) -> str | None:
    """The innermost line of the user's code in the text of a stack, as torch notes one for each captured operation."""
    places = [(file, int(number)) for file, number in _FRAME.findall(trace) if _is_the_users(file)]
    return _describe_line(*places[-1]) if places else None


_FRAME = re.compile(r'File "(.+?)", line (\d+)')


def line_clause(line: str | None) -> str:
    """The line as the end of a clause, or nothing."""
    return f", at {line}" if line else ""


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error and what it was raised from, the first cause first."""
    links: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in links:
        links.append(link)
        link = link.__cause__ or link.__context__
    return iter(reversed(links))


def _frames_outwards(frame: FrameType | None) -> Iterable[FrameType]:
    while frame is not None:
        yield frame
        frame = frame.f_back


def _is_the_users(file: str) -> bool:
    path = Path(file)
    if not path.is_absolute() or not path.is_file():
        return False
    return user_code.is_the_users(path) and not sources.is_ours(path.resolve())


def _describe_line(file: str, number: int) -> str:
    text = linecache.getline(file, number).strip()
    return f"{Path(file).name}, line {number} ({text})" if text else f"{Path(file).name}, line {number}"
