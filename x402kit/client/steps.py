"""What the core asks of its driver, and what it is told."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from typing import Any

from .policy import Proposal
from .receipts import PaymentInfo

__all__ = ["Answer", "Ask", "Body", "Drop", "Lost", "Send", "Sleep", "Step", "Steps", "Store", "Work"]


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer's head. ``headers`` are looked up without regard to case."""

    status: int
    headers: Mapping[str, str]
    challenges: tuple[str, ...] = ()
    """The lines of ``WWW-Authenticate``."""


@dataclass(frozen=True, slots=True)
class Lost:
    """No answer came. ``sent``: whether the server may have seen the request."""

    error: Exception
    sent: bool = True


@dataclass(frozen=True, slots=True)
class Send:
    """Send the request, with these headers (of a payment, of a proof) set; → Answer or Lost."""

    headers: Mapping[str, str] = field(default_factory=dict[str, str])
    read_timeout: float = 0.0


@dataclass(frozen=True, slots=True)
class Body:
    """Read the answer's body, if it is within the limit, and keep it readable; → bytes or None."""


@dataclass(frozen=True, slots=True)
class Drop:
    """Be done with the answer: it will not be returned."""


@dataclass(frozen=True, slots=True)
class Store:
    """Run a blocking action of the journal; → what it returns."""

    action: Callable[[], Any]


@dataclass(frozen=True, slots=True)
class Work:
    """Run a blocking action whose result may be abandoned, though it goes on; → what it returns."""

    action: Callable[[], Any]


@dataclass(frozen=True, slots=True)
class Ask:
    """Ask the caller's callback; → bool."""

    proposal: Proposal


@dataclass(frozen=True, slots=True)
class Sleep:
    seconds: float


Step = Send | Body | Drop | Store | Work | Ask | Sleep
Steps = Generator[Step, Any, PaymentInfo | None]
