"""A resource: a priced route of the seller's app, with all that its price sets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from ..model import BODY_MAX, BODY_SECONDS, KEPT_BODY_MAX
from ..pricing import Price

__all__ = ["Resource", "below_400"]


def below_400(status: int) -> bool:
    """What is charged for by default: an answer below 400. Others leave a settled payment good for the same request."""
    return status < 400


@dataclass(frozen=True, slots=True, eq=False)
class Resource:
    """``id`` names it in logs, claims and quotes. ``settle="after"`` serves first and is never used for streams.

    ``headers`` are the names of those that the price reads, in lower case: a payment is bound to their values (I10).
    """

    id: str
    price: Price
    description: str = ""
    mime_type: str = ""
    settle: Literal["before", "after"] = "before"
    confirmations: int | None = None
    max_timeout_seconds: int = 300
    charge: Callable[[int], bool] = below_400
    body_limit: int = BODY_MAX
    body_seconds: float = BODY_SECONDS
    keep_bytes: int = KEPT_BODY_MAX
    cache_control: str = "private, no-store"
    headers: tuple[str, ...] = ()
