"""Something happens at one step of many: at the n-th call, for every n until there are no more."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import Any

__all__ = ["Trap"]


class Trap:
    """Calls ``spring`` at one call of many, before it or after it. ``left`` is negative once it did.

    ``steps`` are the methods whose calls count: of what, and their names.
    """

    def __init__(self, *steps: tuple[Any, Iterable[str]]) -> None:
        self.left, self.after = -1, False
        self.spring: Callable[[], Any] = lambda: None
        for target, names in steps:
            for name in names:
                setattr(target, name, self._trapped(getattr(target, name)))

    def set(self, number: int, after: bool, spring: Callable[[], Any]) -> None:
        self.left, self.after, self.spring = number, after, spring

    def _trapped(self, method: Any) -> Any:
        assert inspect.iscoroutinefunction(method)

        async def trapped(*arguments: Any, **named: Any) -> Any:
            self.left -= 1
            mine = self.left == -1
            if mine and not self.after:
                self.spring()
            made = await method(*arguments, **named)
            if mine and self.after:
                self.spring()
            return made

        return trapped
