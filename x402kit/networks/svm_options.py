"""The settings of a Solana rail that most sellers leave as they are."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from ..errors import ConfigError

__all__ = ["SvmOptions"]


@dataclass(frozen=True, slots=True)
class SvmOptions:
    """What is rarely set.

    ``relaxed``: take the layout of Katana's clients, beside the strict one (svm.py). ``create_recipient``: where the
    recipient's token account is missing, quote its rent and let a payment create it; needs ``relaxed`` and ``fees``.
    ``memo``: what each payment's one memo must say; solana/charge, whose payments need one each, is not offered then.
    ``max_units``, ``max_unit_price`` (micro-lamports), ``max_priority_lamports``: limits of what a payer may have us
    pay for priority. ``finalized_above``: amounts, in atomic units, from which a payment counts only when it is
    finalized (D10); by default 100 whole units. ``quorum``: how many of the RPC URLs must agree on an outcome of at
    least ``quorum_above`` atomic units (I-10). ``reserve_settlements``: how many the wallet must be able to pay for to
    be ready. ``token_2022``: mints of that program that may be taken, beside those that we know (D05). ``local``:
    whether the node may be of a chain of its own; by default where it is on this machine. ``poll_seconds``: first and
    longest pause between looks; ``resend_seconds``: between broadcasts of the same bytes. ``hint_seconds``: how often a
    blockhash is read for offers, so that payers need no node; 0: never. ``rpc_seconds``: time limit of a call.
    ``clock``: Unix time.
    """

    relaxed: bool = False
    create_recipient: bool = False
    memo: str = ""
    max_units: int = 200_000
    max_unit_price: int = 5_000_000
    max_priority_lamports: int = 50_000
    finalized_above: int | None = None
    quorum: int = 1
    quorum_above: int = 0
    reserve_settlements: int = 3
    token_2022: frozenset[str] = field(default_factory=frozenset[str])
    local: bool | None = None
    poll_seconds: tuple[float, float] = (0.05, 0.5)
    resend_seconds: float = 2.0
    hint_seconds: float = 10.0
    rpc_seconds: float = 10.0
    clock: Callable[[], float] = time.time

    def __post_init__(self) -> None:
        if len(self.memo.encode()) > 256:
            raise ConfigError("a memo has 256 bytes at the most")
        if self.create_recipient and not self.relaxed:
            raise ConfigError("create_recipient needs relaxed=True: the strict layout has no place for it")
