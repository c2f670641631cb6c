"""The demo's Lightning: two real nodes with a channel between them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import TracebackType
from typing import Final, Self

import httpx

from ..client import Limits, Payer, Proposal
from ..client.balance import Balance
from ..devnet import LightningDevnet
from ..devnet.errors import DevnetError
from ..errors import ServerError
from ..money import parse_atomic
from ..networks.lightning_port import bitcoin_on
from ..networks.lnd import Lnd
from .demo_rails import Transfer

__all__ = ["LightningDemo"]

_BTC_USD: Final = "100000"
"""What a bitcoin is worth here, to both sides."""


class LightningDemo:
    """Bitcoin over a channel: the first node is the seller's, the second the payer's."""

    proves = False

    def __init__(self) -> None:
        self._nodes = LightningDevnet()
        self.asset = bitcoin_on(self._nodes.network)
        self.seller, self.payer = self._nodes.seller.pubkey, self._nodes.payer.pubkey

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._nodes.stop()

    @property
    def about(self) -> str:
        return f"two Lightning nodes (LDK) and a channel, a bitcoin taken for ${_BTC_USD}"

    def environment(self) -> dict[str, str]:
        return {
            "X402KIT_LIGHTNING_URL": f"lnd+{self._nodes.seller.url}",
            "X402KIT_LIGHTNING_KEY": self._nodes.seller.invoice_macaroon,
            "X402KIT_LIGHTNING_BTC_USD": _BTC_USD,
        }

    def wallet(self, per_call: str, per_day: str, approve: Callable[[Proposal], bool], balance: Balance) -> Payer:
        node = Lnd(self._nodes.payer.url, self._nodes.payer.macaroon)
        limits = Limits(per_call=per_call, per_day=per_day)
        return Payer(lightning=node, btc_usd=_BTC_USD, limits=limits, approve=approve, allow_insecure=True)

    def balance_of(self, address: str) -> int:
        """What the node has in the channel, in msat."""
        node = self._nodes.seller if address == self.seller else self._nodes.payer
        said = httpx.get(f"{node.url}/v1/balance/channels", headers={"Grpc-Metadata-macaroon": node.macaroon})
        return parse_atomic(said.raise_for_status().json()["local_balance"]["msat"])

    def transfer(self, transaction: str) -> Transfer:
        """What the seller's own node says of a payment hash."""
        node = Lnd(self._nodes.seller.url, self._nodes.seller.invoice_macaroon)

        async def look_up() -> int:
            await node.start()
            try:
                found = await node.look_up(transaction)
            finally:
                await node.close()
            return found.received if found.state == "settled" else 0

        try:
            amount = asyncio.run(look_up())
        except ServerError as e:
            raise DevnetError(f"the seller's node: {e.reason}") from e
        if not amount:
            raise DevnetError(f"payment {transaction} is not settled")
        return Transfer(transaction, 0, self.payer, self.seller, amount)
