"""Attacks on what is paid over Lightning: the ways that money, or a payer's right to it, could be lost or had twice."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from pathlib import Path

from tests.support.lightning_till import WaryNode, opened
from x402kit.devnet import LightningDevnet


class PolledNode(WaryNode):
    """Tells of a payment a moment later, as the adapters do that ask their node again and again."""

    async def subscribe(self) -> AsyncGenerator[str]:
        async for payment_hash in super().subscribe():
            await asyncio.sleep(0.3)
            yield payment_hash


async def test_C02_an_invoice_that_another_process_has_seen_paid_is_not_offered_again(
    lightning: LightningDevnet, tmp_path: Path
) -> None:
    ledger = tmp_path / "payments.db"
    late = PolledNode(lightning.seller)
    async with opened(lightning, ledger) as one, opened(lightning, ledger, node=late) as other:
        bought = await other.buy("/fixed")
        one.bought[bought.offer.hash] = bought
        assert (await one.show("/fixed", bought.l402)).status == 200
        await asyncio.sleep(0.6)
        assert (await other.offer("/fixed")).hash != bought.offer.hash
