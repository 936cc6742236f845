"""Every torch function that a network calls, seen as it is called."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch.overrides import TorchFunctionMode


class Watched(TorchFunctionMode):
    """While open, every torch function runs as it would; subclasses hear of it."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        self.before(func, args)
        result = func(*args, **(kwargs or {}))
        self.after((args, kwargs), result)
        return result

    def before(self, func: Callable[..., Any], args: tuple[Any, ...]) -> None:
        """``func`` is about to run; what this raises ends the pass."""

    def after(self, given: Any, result: Any) -> None:
        """It returned ``result`` for all that it was given."""
