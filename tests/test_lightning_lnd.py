"""The LND adapter against the devnet's nodes: real payments, and all that can go wrong on the way to the node."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.support.lightning import ask, balance_of
from tests.support.lightning_contract import CHECKS, Check, Ground, named
from x402kit.devnet import LightningDevnet
from x402kit.networks.lightning_port import InvoiceState
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


async def test_a_fee_above_the_cap_is_not_paid() -> None:
    with LightningDevnet(hub=True) as nodes:  # its hub takes 1000 msat
        seller, payer = Lnd(nodes.seller.url, nodes.seller.invoice_macaroon), Lnd(nodes.payer.url, nodes.payer.macaroon)
        await seller.start()
        await payer.start()
        made = await seller.create(50_000, expiry_seconds=60)
        for cap in (0, 999):
            state = await payer.pay(made.bolt11, max_fee=cap, timeout_seconds=10)
            assert (state.state, state.reason) == ("failed", "no_route")
        assert await seller.look_up(made.payment_hash) == InvoiceState("open")
        before = await balance_of(nodes.payer)
        state = await payer.pay(made.bolt11, max_fee=1000, timeout_seconds=10)
        assert (state.state, state.fee) == ("succeeded", 1000)
        assert before - await balance_of(nodes.payer) == 51_000
        assert await seller.look_up(made.payment_hash) == InvoiceState("settled", 50_000)
        await seller.close()
        await payer.close()


@pytest.mark.parametrize("private", [True, False])
async def test_an_invoice_tells_of_private_channels_when_told_to(lightning: LightningDevnet, private: bool) -> None:
    node = Lnd(lightning.seller.url, lightning.seller.macaroon, private=private)
    await node.start()
    made = await node.create(1000, expiry_seconds=60)
    shown = await ask(lightning.seller, "GET", f"/v1/invoice/{made.payment_hash}")
    assert shown["private"] is private
    await node.close()
