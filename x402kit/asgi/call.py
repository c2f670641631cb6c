"""What a handler finds in ``scope["x402kit"]``: who paid what, and how to say what the call used."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import Any, Final

from ..errors import ConfigError
from ..model import Entry, SettlementResponse
from ..money import Usd, usd
from ..pricing import Usage

__all__ = ["JOB_SECONDS", "PaidCall", "cost_of"]

JOB_SECONDS: Final = 24 * 3600
"""How long a job may take, unless it says otherwise; after that its reserve goes back to the payer."""
JOB_SECONDS_MAX: Final = 366 * 86_400


class PaidCall:
    """One paid call. ``amount`` is the most that it may cost, in atomic units of ``asset`` on ``network``: paid by
    ``payer``, or held on its balance (``source`` is ``payment`` or ``balance``).

    ``receipt`` is None while a payment with ``settle="after"`` is not settled yet. ``request_id`` names the call to its
    payer, in the account's transactions too, and can't be guessed.
    """

    __slots__ = (
        "_request_id",
        "amount",
        "asset",
        "cost",
        "entry",
        "job",
        "job_seconds",
        "network",
        "payer",
        "receipt",
        "resource",
        "source",
        "usage",
    )

    def __init__(
        self,
        payer: str,
        amount: int,
        network: str,
        asset: str,
        resource: str,
        receipt: SettlementResponse | None,
        *,
        source: str = "payment",
        request_id: str = "",
        job: str = "",
        entry: Entry | None = None,
    ) -> None:
        self.payer = payer
        self.amount = amount
        self.network = network
        self.asset = asset
        self.resource = resource
        self.receipt = receipt
        self.source = source
        self._request_id = request_id
        self.job = job
        self.entry = entry
        self.usage: Usage | None = None
        self.cost: Usd | None = None
        self.job_seconds: int | None = None

    @property
    def request_id(self) -> str:
        """Made when it is first asked for, where the call has none yet: most calls are never asked for it (5 µs)."""
        if not self._request_id:
            self._request_id = f"req_{secrets.token_urlsafe(18)}"
        return self._request_id

    @property
    def told_id(self) -> str:
        """``request_id`` where it was asked for, so that somebody may know it; else empty."""
        return self._request_id

    def report(self, usage: Usage | Mapping[str, Any] | None = None, *, cost: str | Usd | None = None) -> None:
        """Say what the call used, or what it costs: it counts instead of what the answer states. The last word counts.

        Without a ``cost`` the route's price makes one of ``usage``. Above the reserve, the ledger's overage rule
        decides (E04). Raises ``ValueError`` and ``ConfigError`` for what is no usage and no price.
        """
        if usage is not None:
            self.usage = usage if isinstance(usage, Usage) else Usage.of(usage)
        if cost is not None:
            self.cost = cost_of(cost)

    def defer(self, seconds: int = JOB_SECONDS) -> str:
        """The answer goes out now, and the work goes on as a job: the reserve waits for its end, so long at most.

        The returned id is for ``paywall.finish(id, cost)`` or ``paywall.void(id)``; keep it with the job, on disk if
        the job outlives the process. ``request_id`` is what the payer may be given to ask by. Raises ``ValueError``.
        """
        if not 0 < seconds <= JOB_SECONDS_MAX:
            raise ValueError("a job needs some time, and at most a year")
        self.job_seconds = seconds
        return self.job


def cost_of(stated: str | Usd) -> Usd:
    """A cost as sellers write it, ``"$0.01"``, or in ``Usd``. Raises ``ConfigError`` for all else, and below zero."""
    made = usd(stated) if isinstance(stated, str) else stated
    if type(made) is not Usd or made.value < 0:
        raise ConfigError(f'a cost is written like "$0.01", or is Usd, and not below zero: {stated!r}')
    return made
