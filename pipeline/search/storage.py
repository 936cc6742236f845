"""Where a study is kept: a journal file, which a network file system may hold, or a database."""

from __future__ import annotations

import importlib.util
import logging
import time
import warnings
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgewise.errors import RequestError
from edgewise.targets import MissingBackend

if TYPE_CHECKING:
    from collections.abc import Iterator

    from optuna.storages import BaseStorage
    from optuna.study import Study
    from optuna.trial import FrozenTrial

JOURNAL = "journal.log"
BEAT = 30
"""Seconds between two signs of life of a worker's trial."""
GRACE = 150
"""Seconds without one after which its worker counts as dead."""
_DATABASES = {"postgresql": ("psycopg", "search_postgresql"), "mysql": ("pymysql", "search_mysql")}
"""Kind of database -> the driver that is used where the address names none, and the extra that installs it."""
_PATIENCE = 10
"""Seconds that a database may take to answer at all."""


def check_optuna() -> None:
    """Raise MissingBackend where Optuna is not installed."""
    if importlib.util.find_spec("optuna") is None:
        raise MissingBackend(
            'a search needs optuna, which is not installed. Install it with: python -m pip install -e ".[search]"'
        )


def quieten_optuna() -> None:
    """Its lines on every trial are said here in other words, and what is marked experimental in it is pinned."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    warnings.filterwarnings("ignore", message="Heartbeat of storage is supposed to be used")
    logging.getLogger("alembic").setLevel(logging.WARNING)


def check_storage(where: str | None, workers: int) -> None:
    """Raise RequestError for a storage that cannot do, and MissingBackend for a driver that is missing; nothing is opened."""
    kind = _kind_of(where)
    if kind == "sqlite" and workers > 1:
        raise RequestError(
            "--storage sqlite:// serves one worker only: Optuna would never recommend SQLite for parallel optimization, since "
            "its lock lets one process write at a time and fails on network file systems. Leave --storage out (a journal "
            "file), or give postgresql:// or mysql://"
        )
    if kind in _DATABASES:
        driver, extra = _DATABASES[kind]
        if "+" not in str(where).partition("://")[0] and importlib.util.find_spec(driver) is None:
            raise MissingBackend(
                f"--storage {kind}:// needs {driver}, which is not installed. Install it with: "
                f'python -m pip install -e ".[{extra}]"'
            )
    elif kind not in ("", "sqlite"):
        raise RequestError(
            f"--storage: no study can be kept at {kind}://; wanted a path for a journal file, postgresql://USER@HOST/NAME or "
            "mysql://USER@HOST/NAME"
        )


def _kind_of(where: str | None) -> str:
    """``postgresql``, ``mysql``, ``sqlite``, another scheme; empty for a journal file."""
    scheme, separator, _ = (where or "").partition("://")
    return scheme.partition("+")[0].lower() if separator else ""


def is_single(where: str | None) -> bool:
    """Whether one worker at a time may use the storage."""
    return _kind_of(where) == "sqlite"


def open_storage(where: str | None, out: Path, retry: Callable[[Study, FrozenTrial], None]) -> BaseStorage:
    """The storage, asked once whether it answers. ``where`` None: a journal file in ``out``.

    ``retry``: what Optuna does with a trial whose worker is dead, where the storage knows of it. Raises RequestError.
    """
    quieten_optuna()
    kind = _kind_of(where)
    return _open_database(str(where), kind, retry) if kind else _open_journal(Path(where) if where else out / JOURNAL)


@contextmanager
def without_empty_journal(where: str | None, out: Path) -> Iterator[None]:
    """Within the block, a request that is refused leaves behind no journal without a word in it."""
    path = Path(where) if where and not _kind_of(where) else out / JOURNAL
    existed = path.exists()
    try:
        yield
    except BaseException:
        if not existed and path.is_file() and not path.stat().st_size:
            path.unlink(missing_ok=True)
        raise


def _open_journal(path: Path) -> BaseStorage:
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return JournalStorage(JournalFileBackend(str(path)))
    except OSError as error:
        raise RequestError(
            f"--storage: cannot keep a journal at {path}: {error.strerror or error}; name a file in a folder that can be written"
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise RequestError(
            f"--storage: {path} is no journal of a study ({type(error).__name__}: {error}); name another file"
        ) from error


def _open_database(where: str, kind: str, retry: Callable[[Study, FrozenTrial], None]) -> BaseStorage:
    from optuna.storages import RDBStorage

    url = where if "+" in where.partition("://")[0] or kind not in _DATABASES else _with_driver(where, kind)
    limits: dict[str, Any] = {} if kind == "sqlite" else {"connect_args": {"connect_timeout": _PATIENCE}}
    for attempt in range(3):
        try:
            return RDBStorage(
                url,
                engine_kwargs={"pool_pre_ping": True, **limits},
                heartbeat_interval=BEAT,
                grace_period=GRACE,
                heartbeat_stale_trial_callback=retry,
            )
        except Exception as error:
            if attempt < 2 and _is_race(error):  # another worker makes the tables at this moment
                time.sleep(1 + attempt)
                continue
            raise _refuse_database(where, error) from error
    raise AssertionError("the last attempt returns or raises")


def _with_driver(where: str, kind: str) -> str:
    return f"{kind}+{_DATABASES[kind][0]}{where[len(kind) :]}"


def _is_race(error: Exception) -> bool:
    from sqlalchemy import exc

    return isinstance(error, (exc.IntegrityError, exc.ProgrammingError)) and "exist" in str(error)


def _refuse_database(where: str, error: Exception) -> RequestError:
    from sqlalchemy import exc

    detail = str(getattr(error, "orig", None) or error).strip().splitlines()
    reason = detail[0] if detail else type(error).__name__
    if isinstance(error, exc.OperationalError):
        return RequestError(
            f"--storage {hide_password(where)} does not answer: {reason}. Is it running, and may this machine connect to it?"
        )
    return RequestError(f"--storage {hide_password(where)} cannot be used: {reason}")


def hide_password(where: str) -> str:
    """An address without its password."""
    head, at, tail = where.rpartition("@")
    scheme, separator, user = head.partition("://")
    return f"{scheme}{separator}{user.partition(':')[0]}:***{at}{tail}" if ":" in user else where


@contextmanager
def storage_errors(where: str | None) -> Iterator[None]:
    """Raise RequestError where the storage stops to answer within the block."""
    try:
        yield
    except Exception as error:
        module = type(error).__module__.partition(".")[0]
        if module == "sqlalchemy" or type(error).__name__ == "StorageInternalError":
            raise _refuse_database(
                str(where), error.__cause__ if isinstance(error.__cause__, Exception) else error
            ) from error
        raise
