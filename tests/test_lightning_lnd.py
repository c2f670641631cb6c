"""The LND adapter against the devnet's nodes: real payments, and all that can go wrong on the way to the node."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.support.lightning_contract import CHECKS, Check, Ground, named
from x402kit.devnet import LightningDevnet
from x402kit.networks.lnd import Lnd


@pytest.fixture
async def ground(lightning: LightningDevnet) -> AsyncIterator[Ground]:
    """The seller with the macaroon for invoices alone, as a seller should have it."""
    seller = Lnd(lightning.seller.url, lightning.seller.invoice_macaroon)
    payer = Lnd(lightning.payer.url, lightning.payer.macaroon)
    await seller.start()
    await payer.start()
    yield Ground(seller, payer, lightning)
    await seller.close()
    await payer.close()


@pytest.mark.parametrize("check", CHECKS, ids=named)
async def test_lnd_keeps_to_the_ports(check: Check, ground: Ground) -> None:
    await check(ground)
