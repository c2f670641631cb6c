"""The settlement's cost inside the price: gas of the L2, plus the L1 data fee, turned into the asset (Katana 3).

    wei       = gas_units x (base fee + tip) + the L1 fee for a transaction of this size (OP stack's oracle)
    surcharge = wei x price of the chain's coin x (1 + margin), in atomic units of a dollar-pegged asset, rounded up

It is constant inside a window, so that a client that echoes no quote can be priced again (design.md, "The flow"). A
price that can't be read leaves the last one standing for a bounded time; then the rail is not ready (503).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

from ..errors import ConfigError
from ..model import LEEWAY_SECONDS
from ..money import Asset, parse_units
from .evm import chain_id, keccak
from .evm_abi import call_data
from .evm_fees import Fees
from .evm_reads import Chain
from .meter import Meter

__all__ = ["ChainlinkFeed", "FixedPrice", "GasMeter", "GasPolicy", "PriceFeed"]

_ORACLE: Final = "0x420000000000000000000000000000000000000F"
_OP_STACK: Final = frozenset((10, 8453, 84532, 11155420, 7777777, 34443, 57073, 480, 1868))
_TRANSACTION_BYTES: Final = 420
"""A signed EIP-3009 settlement; most of it is signatures and hashes, which don't compress."""


class PriceFeed(Protocol):
    """Dollars for one whole coin of the chain."""

    async def read(self, chain: Chain, now: int) -> tuple[int, int]:
        """The price as an integer and its decimals. ``ValueError`` when there is none that can be trusted now."""
        ...


@dataclass(frozen=True, slots=True)
class FixedPrice:
    """A price that the operator states, e.g. ``FixedPrice("2500.00")`` dollars. ``ConfigError``."""

    usd: str

    def __post_init__(self) -> None:
        try:
            positive = parse_units(self.usd, 8) > 0
        except ValueError:
            positive = False
        if not positive:
            raise ConfigError(f'a coin\'s price is written like "2500.00", not {self.usd!r}')

    async def read(self, chain: object, now: int) -> tuple[int, int]:
        return parse_units(self.usd, 8), 8


@dataclass(frozen=True, slots=True)
class ChainlinkFeed:
    """A Chainlink aggregator on the same chain, coin / USD. An answer older than ``max_age_seconds`` is no answer."""

    address: str
    max_age_seconds: int = 7200

    async def read(self, chain: Chain, now: int) -> tuple[int, int]:
        answer = await chain.call(self.address, call_data("latestRoundData()"))
        if len(answer) < 160:
            raise ValueError(f"no price feed at {self.address}")
        decimals = await chain.call_number(self.address, call_data("decimals()"))
        if decimals > 30:
            raise ValueError(f"no price feed at {self.address}")
        price = int.from_bytes(answer[32:64], "big", signed=True)
        updated = int.from_bytes(answer[96:128], "big")
        if price <= 0 or not now - self.max_age_seconds <= updated <= now + LEEWAY_SECONDS:
            raise ValueError("no price, or a stale one")
        return price, decimals


@dataclass(frozen=True, slots=True)
class GasPolicy:
    """How settlement costs go into prices.

    ``margin_percent`` covers what gas and coin do inside a window of ``window_seconds``; ``gas_units`` is what a
    transfer uses; ``l1_fee`` is whether to ask the OP stack's oracle (by default where the chain is known to have it);
    ``stale_seconds`` how long the last price stands when none can be read.
    """

    feed: PriceFeed
    window_seconds: int = 300
    margin_percent: int = 20
    gas_units: int = 105_000
    l1_fee: bool | None = None
    stale_seconds: int = 1800

    def __post_init__(self) -> None:
        if self.window_seconds < 1 or self.margin_percent < 0 or self.gas_units < 21_000 or self.stale_seconds < 0:
            raise ConfigError("a gas policy's numbers are out of range")


class GasMeter(Meter):
    """The surcharge of an EVM chain."""

    def __init__(
        self, policy: GasPolicy, chain: Chain, fees: Fees, asset: Asset, clock: Callable[[], float] = time.time
    ) -> None:
        super().__init__(
            asset.network,
            self._wei_cost,
            window_seconds=policy.window_seconds,
            stale_seconds=policy.stale_seconds,
            clock=clock,
        )
        self._policy, self._chain, self._fees, self._asset = policy, chain, fees, asset
        known = chain_id(asset.network) in _OP_STACK
        self._l1 = known if policy.l1_fee is None else policy.l1_fee

    async def _wei_cost(self) -> int:
        price = await self._fees.price()
        coin, decimals = await self._policy.feed.read(self._chain, self._now())
        wei = self._policy.gas_units * price.expected
        if self._l1:
            wei += await self._l1_fee()
        scaled: int = wei * coin * 10**self._asset.decimals * (100 + self._policy.margin_percent)
        unit: int = 10 ** (18 + decimals) * 100
        return -(-scaled // unit)

    async def _l1_fee(self) -> int:
        sample = b"".join(keccak(bytes((i,))) for i in range(_TRANSACTION_BYTES // 32 + 1))[:_TRANSACTION_BYTES]
        answer = await self._chain.call(_ORACLE, call_data("getL1Fee(bytes)", tail=sample))
        if len(answer) < 32:
            raise ValueError(f"no L1 fee oracle at {_ORACLE}; on a local chain say GasPolicy(..., l1_fee=False)")
        return int.from_bytes(answer[:32], "big")
