"""What a payer has learned of sellers that keep balances. In memory, and bounded; forgetting costs a request."""

from __future__ import annotations

import threading
from dataclasses import dataclass, replace
from typing import Final, TypeVar

__all__ = ["Seller", "Sellers"]

ORIGINS_MAX: Final = 256
ROUTES_MAX: Final = 2048
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Seller:
    """``network`` is where the balance is kept, ``skew`` how many seconds the server's clock is ahead of ours.

    ``asks``: a call was dearer than the policy's cap, so the price is asked for before the next one is proved.
    """

    network: str = ""
    skew: int = 0
    asks: bool = False


class Sellers:
    """Safe to share between threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sellers: dict[str, Seller] = {}
        self._priced: dict[str, bool] = {}

    def get(self, origin: str) -> Seller | None:
        """A seller that takes wallet proofs; None where we don't know that."""
        return self._sellers.get(origin)

    def learn(self, origin: str, *, network: str = "", skew: int | None = None, asks: bool | None = None) -> None:
        """The origin takes wallet proofs; what is not given stays as it was."""
        with self._lock:
            known = self._sellers.get(origin, Seller())
            made = replace(
                known,
                network=network or known.network,
                skew=known.skew if skew is None else skew,
                asks=known.asks if asks is None else asks,
            )
            _put(self._sellers, origin, made, ORIGINS_MAX)

    def is_free(self, route: str) -> bool:
        """Whether a proof was of no use there, so that the next call goes without one."""
        return self._priced.get(route) is False

    def note(self, route: str, *, priced: bool) -> None:
        """A price was seen, or none. What was priced once stays so: not every seller tells of its charges."""
        with self._lock:
            if priced or route not in self._priced:
                _put(self._priced, route, priced, ROUTES_MAX)


def _put(known: dict[str, T], key: str, value: T, most: int) -> None:
    if key not in known and len(known) >= most:
        del known[next(iter(known))]
    known[key] = value
