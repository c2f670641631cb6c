"""What a unit of gas costs now, and the most that we pay for it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from ..errors import RailUnavailable
from .evm_reads import Chain
from .rpc import RpcRefused, RpcTrouble

__all__ = ["Fees", "Price", "default_fee_cap"]

GWEI: Final = 10**9
FRESH_SECONDS: Final = 3.0
_TIP_WITHOUT_ADVICE: Final = GWEI // 1000
_CAPS: Final = {
    1: 100 * GWEI,
    137: 1000 * GWEI,
    42220: 200 * GWEI,
    43114: 100 * GWEI,
    1329: 200 * GWEI,
    143: 500 * GWEI,
}
_CAP_ELSEWHERE: Final = 5 * GWEI
"""On an L2 that is far above what blocks cost: a transfer at the cap costs 0.0007 ETH."""


def default_fee_cap(chain_id: int) -> int:
    """The most that a unit of gas may cost where the operator sets no ``max_fee_per_gas``, in wei."""
    return _CAPS.get(chain_id, _CAP_ELSEWHERE)


@dataclass(frozen=True, slots=True)
class Price:
    """Wei for each unit of gas: the base fee of the latest block, our tip, and the most we offer (EIP-1559)."""

    base: int
    tip: int
    max_fee: int

    @property
    def expected(self) -> int:
        """What a transaction of now will probably pay."""
        return min(self.base + self.tip, self.max_fee)


class Fees:
    """Reads the price, not more often than every few seconds."""

    def __init__(self, chain: Chain, cap: int, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._chain, self.cap, self._monotonic = chain, cap, monotonic
        self._price: Price | None = None
        self._until = 0.0

    async def price(self) -> Price:
        """The current price. ``RailUnavailable`` where it can't be read, or the base fee is above the cap (B16)."""
        if self._price is None or self._monotonic() >= self._until:
            try:
                self._price = await self._read()
            except (RpcTrouble, RpcRefused) as e:
                raise RailUnavailable(detail="gas price unreadable") from e
            self._until = self._monotonic() + FRESH_SECONDS
        if self._price.base > self.cap:
            raise RailUnavailable(detail="gas price above max_fee_per_gas")
        return self._price

    def forget(self) -> None:
        """Read anew next time: something was refused."""
        self._price = None

    async def _read(self) -> Price:
        base = (await self._chain.block("latest")).base_fee
        try:
            advised = await self._chain.tip()
        except RpcRefused:
            advised = _TIP_WITHOUT_ADVICE
        tip = min(advised, self.cap)
        return Price(base, tip, min(self.cap, 2 * base + tip))
