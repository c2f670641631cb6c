"""The settlement's cost on Solana inside the price: fees, and the rent of a recipient's account that is missing.

    lamports  = signatures and priority (``lamports``), plus the rent where a payment would have to create the account
    surcharge = lamports x price of SOL x (1 + margin), in atomic units of a dollar-pegged asset, rounded up

It is constant inside a window, as on every rail (meter.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Protocol

from ..errors import ConfigError
from ..model import CHALLENGE_SECONDS, LEEWAY_SECONDS
from ..money import Asset
from .svm_reads import Node
from .svm_ready import Readiness
from .svm_transaction import TOKEN, address_bytes

__all__ = ["FeePolicy", "Fees", "PythFeed", "SolPriceFeed"]

_RENT_BYTES: Final = {True: 165, False: 256}
"""Of an account of the token program, and of one of Token-2022 with what its mints ask for."""
_PYTH: Final = address_bytes("rec5EKMGg6MxZYaMdyBfgwp4d5rB9T1VQH5pJv5LtFJ")
_UPDATE: Final = bytes.fromhex("22f123639d7ef4cd")
_SOL_USD: Final = bytes.fromhex("ef0d8b6fda2ceba41da15d4095d1da392a0d2f8ed0c6c7bc0f4cfac8c280b56d")


class SolPriceFeed(Protocol):
    """Dollars for one SOL. gas.py's ``FixedPrice`` is one too."""

    async def read(self, chain: Node, now: int) -> tuple[int, int]:
        """The price as an integer and its decimals. ``ValueError`` when there is none that can be trusted now."""
        ...


@dataclass(frozen=True, slots=True)
class PythFeed:
    """Pyth's price account of SOL / USD (mainnet's is the default). An older answer than ``max_age_seconds`` is none.

    The account must belong to Pyth's receiver program and hold a fully verified price of ``feed_id``.
    """

    address: str = "7UVimffxr9ow1uXYxsr4LHAcV58mLzhmwaeKvJ1pjLiE"
    feed_id: bytes = _SOL_USD
    max_age_seconds: int = 600

    async def read(self, chain: Node, now: int) -> tuple[int, int]:
        found = await chain.account(self.address)
        data = b"" if found is None else found.data
        if found is None or address_bytes(found.owner) != _PYTH or data[:8] != _UPDATE or len(data) < 101:
            raise ValueError(f"no price feed at {self.address}")
        if data[40] != 1 or data[41:73] != self.feed_id:
            raise ValueError("not a fully verified price of SOL in dollars")
        price = int.from_bytes(data[73:81], "little", signed=True)
        exponent = int.from_bytes(data[89:93], "little", signed=True)
        published = int.from_bytes(data[93:101], "little", signed=True)
        if price <= 0 or not -18 <= exponent <= 0:
            raise ValueError("no price")
        if not now - self.max_age_seconds <= published <= now + LEEWAY_SECONDS:
            raise ValueError("a stale price")
        return price, -exponent


@dataclass(frozen=True, slots=True)
class FeePolicy:
    """How settlement costs go into prices.

    ``lamports`` is what a settlement costs as a rule: two signatures of 5 000 and some priority; what a payer may make
    of it at the most is ``SvmOptions.max_priority_lamports`` above that. The rest is as in ``GasPolicy``.
    """

    feed: SolPriceFeed
    window_seconds: int = 300
    margin_percent: int = 20
    lamports: int = 15_000
    stale_seconds: int = 1800

    def __post_init__(self) -> None:
        if self.window_seconds < 1 or self.margin_percent < 0 or self.lamports < 10_000 or self.stale_seconds < 0:
            raise ConfigError("a fee policy's numbers are out of range")


class Fees:
    """What a settlement costs now, and whether it holds the rent of the recipient's account."""

    def __init__(
        self, policy: FeePolicy, node: Node, readiness: Readiness, asset: Asset, program: bytes, *, creates: bool
    ) -> None:
        self._policy, self._node, self._readiness, self._asset = policy, node, readiness, asset
        self._creates, self._bytes = creates, _RENT_BYTES[program == TOKEN]
        self.holds_rent = False
        """Whether the prices of this window hold the rent."""
        self._held_until = 0

    def held_rent(self, now: int) -> bool:
        """Whether a price that may still be paid holds the rent: this window's, or an earlier one's (D03)."""
        return self.holds_rent or now < self._held_until

    async def cost(self, now: int) -> int:
        """Atomic units. Raises what the node's calls raise, and ``ValueError`` where SOL has no price."""
        lamports = self._policy.lamports
        missing = self._creates and await self._readiness.recipient_is_missing()
        if missing:
            lamports += await self._node.rent(self._bytes)
        coin, decimals = await self._policy.feed.read(self._node, now)
        if self.holds_rent and not missing:
            self._held_until = now + CHALLENGE_SECONDS + LEEWAY_SECONDS
        self.holds_rent = missing
        scaled: int = lamports * coin * 10**self._asset.decimals * (100 + self._policy.margin_percent)
        unit: int = 10 ** (9 + decimals) * 100
        return -(-scaled // unit)
