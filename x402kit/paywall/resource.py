"""A resource: a priced route of the seller's app, with all that its price sets."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

from ..errors import ConfigError
from ..ledger.port import Overage
from ..model import BODY_MAX, BODY_SECONDS, KEPT_BODY_MAX, STALL_SECONDS, START_SECONDS
from ..money import Usd
from ..pricing import Pass, Price

__all__ = ["PROTOCOLS", "Resource", "below_400"]

PROTOCOLS: Final = frozenset(("x402", "l402", "lsat", "payment"))


def below_400(status: int) -> bool:
    """What is charged for by default: an answer below 400. Others leave a settled payment good for the same request."""
    return status < 400


@dataclass(frozen=True, slots=True, eq=False)
class Resource:
    """``id`` names it in logs, claims and quotes. ``settle="after"`` serves first and is never used for streams.

    ``headers`` are the names of those that the price reads, in lower case: a payment is bound to their values (I10).
    ``overage`` is for a balance call that cost more than its hold (E04). A stream that gives nothing for
    ``stall_seconds`` is ended (H06), and so is a metered or balance-paid call that gives nothing at all for
    ``start_seconds``. ``report_usage`` puts the bill into the answer's ``usage.<service>``; ``ask_usage`` asks an
    OpenAI-shaped upstream to state a stream's usage.

    ``protocols`` and ``networks`` (CAIP-2) are those that it is offered in; empty is all of the paywall's. ``lsat`` is
    the older spelling of ``l402``, for clients that know no other. ``l402`` is what one L402 token buys where it is
    more than one call; the ``Payment`` scheme is not offered then over Lightning.

    ``unless`` is asked with a request's headers (names in lower case), sync or async: where it says yes, a key of the
    seller's own came with it, and the app has it untouched and unpaid. A key that is none must be a no.

    For a top-up alone: ``credits``, the payment becomes balance; ``canonical`` is what of the body binds it; with
    ``amounts``, from the least to the most that may be credited, the payer chooses the amount, and the price is what is
    offered. Raises ``ConfigError`` where they are set for anything else.
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
    overage: Overage = "clamp"
    stall_seconds: float = STALL_SECONDS
    start_seconds: float = START_SECONDS
    report_usage: bool = False
    ask_usage: bool = False
    protocols: tuple[str, ...] = ()
    networks: tuple[str, ...] = ()
    l402: Pass | None = None
    unless: Callable[[Mapping[str, str]], bool | Awaitable[bool]] | None = None
    credits: bool = False
    canonical: Callable[[bytes], bytes] | None = None
    amounts: tuple[Usd, Usd] | None = None
    metered: bool = field(default=True, init=False)

    def __post_init__(self) -> None:
        if not self.credits and (self.canonical is not None or self.amounts is not None):
            raise ConfigError(f"{self.id}: only a top-up can be paid with any amount")
        object.__setattr__(self, "metered", getattr(self.price, "metered", True))

    def takes(self, protocol: str, network: str) -> bool:
        """Whether it is offered in a protocol, and on a network."""
        spoken = self.protocols
        if protocol == "l402" and "lsat" in spoken:
            protocol = "lsat"
        return (not spoken or protocol in spoken) and (not self.networks or network in self.networks)
