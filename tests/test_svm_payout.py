"""Balances go back to their owners' wallets on Solana."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from solders.keypair import Keypair

from tests.support.faulty_rpc import Fault, FaultyRpc, faulty_rpc
from tests.support.svm_payments import NETWORK, SvmSeller, svm_seller
from x402kit.devnet import SvmDevnet
from x402kit.errors import BadRequest, ConfigError, RailUnavailable
from x402kit.model import Claim, Intent
from x402kit.money import MAX_AMOUNT
from x402kit.networks.port import paying
from x402kit.networks.svm_outcome import EXPIRED, FAILED

AMOUNT = 2_500


@pytest.fixture
async def node(svm: SvmDevnet) -> AsyncIterator[FaultyRpc]:
    async with faulty_rpc(svm.rpc_url) as made:
        yield made


@pytest.fixture
def own_svm() -> Iterator[SvmDevnet]:
    with SvmDevnet(slot_ms=5) as chain:
        yield chain


@pytest.fixture
def owner(svm: SvmDevnet) -> str:
    """Somebody with a token account."""
    made = str(Keypair().pubkey())
    svm.set_tokens(made, 0)
    return made


def selling(chain: SvmDevnet, **options: Any) -> Any:
    """A seller whose settlement wallet is ``pay_to``, and holds ten cents of tokens."""
    chain.set_tokens(chain.accounts[0].address, 100_000)
    return svm_seller(chain, pay_to=chain.accounts[0].address, account=False, **options)


def row(shop: SvmSeller, to: str, intent: Intent, **columns: Any) -> Claim:
    """The payout as the store would hold it."""
    made = Claim(
        "payout", "sent", b"", b"", "", NETWORK, shop.rail.asset.address, shop.rail.pay_to, to, AMOUNT, 0, 0, 0
    )
    made = made._replace(reference=intent.reference, intent=intent.blob, wallet=intent.wallet)
    return made._replace(**columns)


async def ended(shop: SvmSeller, claim: Claim, seconds: float = 10, *, seen: bool = False) -> Any:
    """Its outcome when it is decided; with ``seen``, as soon as it is in a block."""
    end = time.monotonic() + seconds
    found = await shop.rail.payout_outcome(claim)
    while found.state == "pending" and not (seen and found.block) and time.monotonic() < end:
        await asyncio.sleep(0.02)
        found = await shop.rail.payout_outcome(claim)
    return found


async def test_E10_a_payout_lands_once_and_is_read_back(svm: SvmDevnet, owner: str) -> None:
    async with selling(svm) as shop:
        assert paying(shop.rail).payer_wallet == svm.accounts[0].address
        intent = await shop.rail.prepare_payout(owner, AMOUNT, shop.nonces)
        claim = row(shop, owner, intent)
        assert (await shop.rail.payout_outcome(claim)).resend
        for _ in range(3):
            assert (await shop.rail.send(intent)).state == "pending"
        found = await ended(shop, claim)
        assert (found.state, found.reference) == ("settled", intent.reference)
        assert svm.balance_of(owner) == AMOUNT
        final = await ended(shop, claim._replace(confirmations=1))
        assert (final.state, final.final) == ("settled", True)


async def test_E10_two_equal_payouts_are_two_transactions(svm: SvmDevnet, owner: str) -> None:
    async with selling(svm) as shop:
        made = [await shop.rail.prepare_payout(owner, AMOUNT, shop.nonces) for _ in range(2)]
        assert made[0].reference != made[1].reference
        for intent in made:
            await shop.rail.send(intent)
            assert (await ended(shop, row(shop, owner, intent))).state == "settled"
        assert svm.balance_of(owner) == 2 * AMOUNT


async def test_what_no_payout_can_be_is_refused(svm: SvmDevnet, owner: str) -> None:
    async with selling(svm) as shop:
        for to, amount in (
            ("0x12", 1),
            (svm.accounts[0].address, 1),
            (owner, 0),
            (owner, MAX_AMOUNT + 1),
            (str(Keypair().pubkey()), 1),  # it has no token account, and we create none
        ):
            with pytest.raises(BadRequest):
                await shop.rail.prepare_payout(to, amount, shop.nonces)
        with pytest.raises(RailUnavailable) as poor:
            await shop.rail.prepare_payout(owner, 100_001, shop.nonces)
        assert "holds less" in poor.value.detail
        svm.set_tokens(owner, 0, state="frozen")
        with pytest.raises(RailUnavailable) as refused:
            await shop.rail.prepare_payout(owner, AMOUNT, shop.nonces)
        assert refused.value.reason == "payout_refused"
    async with svm_seller(svm) as elsewhere:
        assert elsewhere.rail.payer_wallet == ""
        with pytest.raises(ConfigError):
            paying(elsewhere.rail)
        with pytest.raises(RailUnavailable):
            await elsewhere.rail.prepare_payout(owner, AMOUNT, elsewhere.nonces)


async def test_a_payout_that_failed_is_given_back_when_that_is_final(svm: SvmDevnet, owner: str) -> None:
    async with selling(svm) as shop:
        intent = await shop.rail.prepare_payout(owner, AMOUNT, shop.nonces)
        svm.set_tokens(owner, 0, state="frozen")
        await shop.rail.send(intent)
        claim = row(shop, owner, intent)
        first = await ended(shop, claim, seen=True)
        assert (first.state, first.block > 0, first.resend) == ("pending", True, False)
        found = await ended(shop, claim)
        assert (found.state, found.reason) == ("failed", FAILED)


async def test_a_payout_that_never_landed_is_given_back_when_it_can_not_land(own_svm: SvmDevnet) -> None:
    to = str(Keypair().pubkey())
    own_svm.set_tokens(to, 0)
    async with selling(own_svm) as shop:
        intent = await shop.rail.prepare_payout(to, AMOUNT, shop.nonces)
        found = await ended(shop, row(shop, to, intent), 20)
        assert (found.state, found.reason) == ("failed", EXPIRED)
        assert (await shop.rail.send(intent)).state == "pending"
        await asyncio.sleep(0.1)
        assert own_svm.balance_of(to) == 0


async def test_B12_a_payout_that_shows_no_transfer_waits_for_the_operator(
    svm: SvmDevnet, owner: str, node: FaultyRpc
) -> None:
    async with selling(svm, rpc=node.url) as shop:
        intent = await shop.rail.prepare_payout(owner, AMOUNT, shop.nonces)
        await shop.rail.send(intent)
        claim = row(shop, owner, intent)
        assert (await ended(shop, claim)).state == "settled"
        node.faults["getTransaction"] = Fault(change=lambda _: {})
        found = await shop.rail.payout_outcome(claim)
        assert (found.state, found.reason) == ("pending", "succeeded without its transfer")
        node.faults["getTransaction"] = Fault(html=502)
        assert (await shop.rail.payout_outcome(claim)).state == "pending"
        node.faults["getLatestBlockhash"] = Fault(html=502)
        with pytest.raises(RailUnavailable):
            await shop.rail.prepare_payout(owner, AMOUNT, shop.nonces)
