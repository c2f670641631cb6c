"""Payments are settled on a real Solana runtime: what lands, what can't, and what is not known yet."""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from solders.hash import Hash
from solders.keypair import Keypair
from solders.pubkey import Pubkey

from tests.support.faulty_rpc import Fault, FaultyRpc, faulty_rpc
from tests.support.svm_payments import (
    MINT,
    PRICE,
    TOKEN_2022,
    USDC,
    SvmSeller,
    compute,
    creation,
    encoded,
    memo,
    signed,
    standard,
    svm_seller,
    transfer,
)
from x402kit.devnet import SvmDevnet
from x402kit.errors import ConfigError, PaymentRefused, PaymentUsed, RailUnavailable
from x402kit.model import Outcome
from x402kit.money import Asset
from x402kit.networks import FeePolicy, FixedPrice, SvmOptions, SvmRail
from x402kit.networks.svm_outcome import EXPIRED, FAILED, MISMATCH, Sent
from x402kit.networks.svm_reads import Node
from x402kit.networks.svm_scan import Scan
from x402kit.networks.svm_transaction import TOKEN
from x402kit.networks.svm_wallet import SvmWallet

SOL = FixedPrice("150.00")


@pytest.fixture
def own_svm() -> Iterator[SvmDevnet]:
    """A Solana for one test alone, with a block every 5 ms: a blockhash lives for less than a second."""
    with SvmDevnet(slot_ms=5) as chain:
        yield chain


@pytest.fixture
async def node(svm: SvmDevnet) -> AsyncIterator[FaultyRpc]:
    async with faulty_rpc(svm.rpc_url) as made:
        yield made


async def outcome_of(shop: SvmSeller, claim: Any) -> Outcome:
    return await shop.rail.outcome(claim)


async def test_a_payment_is_settled_and_read_back(svm: SvmDevnet) -> None:
    async with svm_seller(svm) as shop:
        await shop.rail.ready()
        authorization = shop.authorize()
        assert (authorization.payer, authorization.amount) == (svm.accounts[1].address, PRICE)
        claim, outcome = await shop.settle(authorization)
        assert (outcome.state, outcome.reference, outcome.log_index) == ("settled", claim.reference, 2)
        assert outcome.block > 0
        assert shop.received() == PRICE
        # The payer has no SOL: the wallet paid two signatures and a priority of next to nothing.
        assert svm.lamports_of(svm.accounts[1].address) == 0


async def test_what_is_simulated_can_not_be_sent_by_who_sees_it(svm: SvmDevnet, node: FaultyRpc) -> None:
    seen: list[str] = []

    def note(params: list[Any]) -> bool:
        seen.append(params[0])
        return False

    node.faults["simulateTransaction"] = Fault(when=note)
    async with svm_seller(svm, rpc=node.url) as shop:
        await shop.rail.verify(shop.authorize(), shop.offer)
    (shown,) = seen
    assert base64.b64decode(shown)[1:65] == bytes(64)


@pytest.mark.parametrize(
    ("amount", "state", "reason"),
    [(10**12, "initialized", "insufficient_funds"), (PRICE, "frozen", "transaction_simulation_failed")],
)
async def test_what_could_not_go_through_is_refused_before_it_is_signed(
    svm: SvmDevnet, amount: int, state: str, reason: str
) -> None:
    payer = Keypair()
    svm.set_tokens(str(payer.pubkey()), 5_000, state=state)
    async with svm_seller(svm) as shop:
        shop.offer = shop.offer._replace(amount=amount)
        steps = standard(payer.pubkey(), pay_to=shop.rail.pay_to, amount=amount)
        with pytest.raises(PaymentRefused) as refused:
            await shop.rail.verify(shop.authorize(shop.payload(steps, payer)), shop.offer)
        assert refused.value.reason == reason


async def test_B07_drained_between_check_and_settlement_it_fails_for_certain(svm: SvmDevnet) -> None:
    payer = Keypair()
    svm.set_tokens(str(payer.pubkey()), PRICE)
    async with svm_seller(svm) as shop:
        authorization = shop.authorize(payer=payer)
        await shop.rail.verify(authorization, shop.offer)
        svm.set_tokens(str(payer.pubkey()), PRICE - 1)
        intent, claim = await shop.prepare(authorization)
        await shop.rail.send(intent)
        outcome = await shop.rail.wait(claim, 5)
        assert (outcome.state, outcome.reason, outcome.spent) == ("failed", FAILED, False)
        assert shop.received() == 0
        with pytest.raises(PaymentRefused):  # it has landed, without effect, and can't again
            await shop.rail.verify(authorization, shop.offer)


async def test_D09_unseen_it_is_pending_until_its_blockhash_is_dead_and_then_fails(own_svm: SvmDevnet) -> None:
    async with svm_seller(own_svm) as shop:
        authorization = shop.authorize()
        _, claim = await shop.prepare(authorization)  # and it is never sent
        made = await outcome_of(shop, claim)
        assert (made.state, made.resend) == ("pending", True)
        end = time.monotonic() + 20
        while (made := await outcome_of(shop, claim)).state == "pending":
            assert time.monotonic() < end
            await asyncio.sleep(0.05)
        assert (made.state, made.reason) == ("failed", EXPIRED)
        assert shop.received() == 0
        height = own_svm.rpc("getEpochInfo", {"commitment": "finalized"})["blockHeight"]
        assert height > Sent.of(claim.intent).last_valid
        # Nor can it be shown again: nothing of it can land.
        with pytest.raises(PaymentRefused):
            await shop.rail.verify(authorization, shop.offer)


async def test_D09_a_node_that_lags_or_forgets_is_no_witness_of_a_failure(svm: SvmDevnet, node: FaultyRpc) -> None:
    async with svm_seller(svm, rpc=node.url) as shop:
        _, claim = await shop.prepare(shop.authorize())
        dead = {"absoluteSlot": 10**6, "blockHeight": 10**6}
        node.faults["getEpochInfo"] = Fault(forward=False, result=dead)
        made = await outcome_of(shop, claim)
        assert (made.state, made.reason, made.resend) == ("pending", "the node lags behind", False)
        unseen = {"context": {"slot": 10**6}, "value": [None]}
        node.faults["getSignatureStatuses"] = Fault(forward=False, result=unseen)
        node.faults["getFirstAvailableBlock"] = Fault(forward=False, result=10**6)
        made = await outcome_of(shop, claim)
        assert (made.state, made.reason) == ("pending", "older than the node's history")
        del node.faults["getFirstAvailableBlock"]
        assert (await outcome_of(shop, claim)).reason == EXPIRED
        for fault in (Fault(html=502), Fault(text="{"), Fault(result={"context": {}}), Fault(error={"code": -32005})):
            node.faults["getSignatureStatuses"] = fault
            assert (await outcome_of(shop, claim)).state == "pending"


async def test_I02_I07_a_lost_answer_is_pending_and_the_same_bytes_are_sent_again(
    svm: SvmDevnet, node: FaultyRpc
) -> None:
    async with svm_seller(svm, rpc=node.url) as shop:
        authorization = shop.authorize()
        await shop.rail.verify(authorization, shop.offer)
        intent, claim = await shop.prepare(authorization)
        node.faults["sendTransaction"] = Fault(forward=False, html=502, times=1)
        made = await shop.rail.send(intent)
        assert (made.state, made.never_sent) == ("pending", False)
        outcome = await shop.rail.wait(claim, 5)
        assert (outcome.state, outcome.reference) == ("settled", intent.reference)
        assert node.seen["sendTransaction"] == 2
        assert shop.received() == PRICE


async def test_a_node_that_is_not_there_gets_nothing(svm: SvmDevnet) -> None:
    async with svm_seller(svm) as shop:
        authorization = shop.authorize()
        intent, _ = await shop.prepare(authorization)
        gone = SvmRail(
            shop.rail.network,
            pay_to=shop.rail.pay_to,
            wallet=SvmWallet(svm.accounts[0].secret_key),
            rpc="http://127.0.0.1:9/",
        )
        with pytest.raises(RailUnavailable):
            await gone.prepare(authorization, shop.offer, shop.nonces)
        with pytest.raises(RailUnavailable):
            await gone.verify(authorization, shop.offer)
        await gone.start()  # a node that is down is no fault of the set-up
        with pytest.raises(RailUnavailable):
            await gone.ready()
        # Here it may have been sent before, by a process that is gone: not certain.
        assert (await gone.send(intent)).state == "pending"
        gone._ours().remember(intent)  # pyright: ignore[reportPrivateUsage]  # as if prepared here
        made = await gone.send(intent)
        assert (made.state, made.never_sent) == ("failed", True)
        await gone.close()


async def test_D10_large_amounts_and_confirmations_wait_for_finality(svm: SvmDevnet) -> None:
    async with svm_seller(svm, finalized_above=PRICE) as shop:
        claim, outcome = await shop.settle(shop.authorize(), seconds=0.3)
        assert (outcome.state, outcome.block > 0, outcome.resend) == ("pending", True, False)
        outcome = await shop.rail.wait(claim, 10)
        assert (outcome.state, outcome.final) == ("settled", True)
    async with svm_seller(svm, confirmations=1) as shop:
        claim, outcome = await shop.settle(shop.authorize(), seconds=0.3)
        assert outcome.state == "pending"
        assert (await shop.rail.wait(claim._replace(confirmations=0), 5)).state == "settled"
        assert (await shop.rail.wait(claim, 10)).final


async def test_D10_a_settlement_that_left_the_chain_is_sent_again_and_never_called_settled(
    svm: SvmDevnet, node: FaultyRpc
) -> None:
    async with svm_seller(svm, rpc=node.url) as shop:
        claim, outcome = await shop.settle(shop.authorize())
        assert outcome.state == "settled"
        node.faults["getSignatureStatuses"] = Fault(result={"context": {"slot": 10**6}, "value": [None]})
        settled = claim._replace(state="settled")
        made = await outcome_of(shop, settled)
        assert (made.state, made.resend, made.reason, made.block) == ("pending", True, "", 0)
        node.faults["getEpochInfo"] = Fault(forward=False, result={"absoluteSlot": 10**6, "blockHeight": 10**6})
        assert (await outcome_of(shop, settled)).state == "failed"


async def test_I10_for_high_amounts_the_nodes_must_agree(svm: SvmDevnet, node: FaultyRpc) -> None:
    async with svm_seller(svm, rpc=[svm.rpc_url, node.url], quorum=2, quorum_above=PRICE) as shop:
        claim, outcome = await shop.settle(shop.authorize())
        assert outcome.state == "settled"
        unseen = {"context": {"slot": 10**6}, "value": [None]}
        node.faults["getSignatureStatuses"] = Fault(result=unseen)
        made = await outcome_of(shop, claim)
        assert (made.state, made.reason, made.resend) == ("pending", "the nodes do not agree", False)
        node.faults["getSignatureStatuses"] = Fault(html=502)
        assert (await outcome_of(shop, claim)).state == "pending"
        assert (
            await outcome_of(shop, claim._replace(amount=PRICE - 1))
        ).state == "failed"  # another amount than landed
    with pytest.raises(ConfigError, match="quorum"):
        SvmRail(shop.rail.network, pay_to=shop.rail.pay_to, rpc=svm.rpc_url, options=SvmOptions(quorum=2))


async def test_B12_what_the_chain_shows_decides_not_what_was_sent(svm: SvmDevnet, node: FaultyRpc) -> None:
    async with svm_seller(svm, rpc=node.url) as shop:
        claim, _ = await shop.settle(shop.authorize())

        def less(found: Any) -> Any:
            for each in found["meta"]["postTokenBalances"]:
                each["uiTokenAmount"]["amount"] = str(int(each["uiTokenAmount"]["amount"]) - 1)
            return found

        def other(found: Any) -> Any:
            for each in found["meta"]["postTokenBalances"]:
                each["mint"] = str(Keypair().pubkey())
            return found

        def failing(found: Any) -> Any:
            return {**found, "meta": {**found["meta"], "err": "x"}}

        def nothing(found: Any) -> Any:
            return {}

        for change in (less, other, failing, nothing):
            node.faults["getTransaction"] = Fault(change=change)
            made = await outcome_of(shop, claim)
            assert (made.state, made.reason, made.spent) == ("failed", MISMATCH, True)
        node.faults["getTransaction"] = Fault(result=None)
        assert (await outcome_of(shop, claim)).state == "pending"
        # The transaction of another payment is not this one's.
        node.faults.clear()
        _, second = await shop.settle(shop.authorize())
        assert (await outcome_of(shop, claim._replace(reference=second.reference))).reason == MISMATCH


async def test_B05_what_has_landed_is_used_though_no_claim_says_so(svm: SvmDevnet) -> None:
    async with svm_seller(svm) as shop:
        authorization = shop.authorize()
        claim, _ = await shop.settle(authorization)
        with pytest.raises(PaymentUsed) as used:
            await shop.rail.verify(authorization, shop.offer)
        assert used.value.reference == claim.reference


async def test_an_unknown_blockhash_is_refused(svm: SvmDevnet) -> None:
    async with svm_seller(svm) as shop:
        steps = standard(shop.payer.pubkey(), pay_to=shop.rail.pay_to)
        made = encoded(signed(shop.fee_payer, steps, [shop.payer], Hash.new_unique()))
        with pytest.raises(PaymentRefused) as refused:
            await shop.rail.verify(shop.authorize(made), shop.offer)
        assert refused.value.reason == "transaction_simulation_failed"


async def test_D03_the_recipients_account_is_created_where_the_price_holds_its_rent(svm: SvmDevnet) -> None:
    policy = FeePolicy(SOL, margin_percent=0)
    async with svm_seller(svm, account=False, fees=policy, relaxed=True, create_recipient=True) as shop:
        await shop.rail.ready()
        # 15 000 lamports and 2 039 280 of rent, at 150 dollars for 10**9: 308 142 micro-dollars, rounded up.
        assert shop.rail.surcharge() == -(-(15_000 + 2_039_280) * 150 // 1000)
        assert shop.rail.extra()["createRecipientAccount"] is True
        steps = [creation(shop.fee_payer, shop.rail.pay_to), transfer(shop.payer.pubkey(), shop.rail.pay_to)]
        _, outcome = await shop.settle(shop.authorize(shop.payload(steps)))
        assert (outcome.state, outcome.log_index) == ("settled", 1)
        assert shop.received() == PRICE


async def test_D03_by_default_a_missing_account_makes_the_rail_not_ready(svm: SvmDevnet) -> None:
    async with svm_seller(svm, account=False) as shop:
        with pytest.raises(RailUnavailable) as refused:
            await shop.rail.ready()
        assert "does not exist" in refused.value.detail
        steps = [*compute(), creation(shop.fee_payer, shop.rail.pay_to), transfer(shop.payer.pubkey()), memo()]
        with pytest.raises(PaymentRefused, match="create_ata"):
            shop.authorize(shop.payload(steps))


async def test_katanas_layout_where_the_seller_pays_its_own_fees(svm: SvmDevnet) -> None:
    """Fee payer = payTo, one bare transfer, ``payer`` beside it (wire.md 1.6 rows 11 to 14)."""
    seller = svm.accounts[0]
    before = svm.balance_of(seller.address)
    async with svm_seller(svm, pay_to=seller.address, account=False, relaxed=True) as shop:
        steps = [transfer(shop.payer.pubkey(), seller.address)]
        payload = {**shop.payload(steps), "payer": str(shop.payer.pubkey())}
        _, outcome = await shop.settle(shop.authorize(payload))
        assert outcome.state == "settled"
    assert svm.balance_of(seller.address) == before + PRICE


async def test_what_was_paid_is_found_again_by_the_chain_alone(svm: SvmDevnet) -> None:
    async with svm_seller(svm) as shop:
        first = await shop.rail.head_block()
        made = [await shop.settle(shop.authorize()) for _ in range(3)]
        landed = [each async for each in shop.rail.settled_since(first)]
        assert [each.transaction for each in landed] == [claim.reference for claim, _ in made]
        assert [each.payment_id for each in landed] == [claim.payment_id for claim, _ in made]
        assert {(each.payer, each.amount, each.log_index) for each in landed} == {(str(shop.payer.pubkey()), PRICE, 2)}
        assert [each async for each in shop.rail.settled_since(landed[-1].block)][-1] == landed[-1]
        # By another fee payer it would be no payment of ours.
        assert shop.rail.rpc is not None
        scan = Scan(Node(shop.rail.rpc), shop.rail.network, str(MINT), shop.rail.pay_to, TOKEN)
        assert [each async for each in scan.since(first, str(Pubkey.default()))] == []


async def test_the_nodes_own_words_are_understood(svm: SvmDevnet, node: FaultyRpc) -> None:
    async with svm_seller(svm, rpc=node.url) as shop:
        authorization = shop.authorize()
        slot = {"context": {"slot": 1}}
        node.faults["simulateTransaction"] = Fault(result={**slot, "value": {"err": "AlreadyProcessed"}})
        with pytest.raises(PaymentUsed):
            await shop.rail.verify(authorization, shop.offer)
        node.faults["simulateTransaction"] = Fault(error={"code": -32602, "message": "could not be sanitized"})
        with pytest.raises(PaymentRefused):
            await shop.rail.verify(authorization, shop.offer)
        node.faults.pop("simulateTransaction")
        node.faults["getSignatureStatuses"] = Fault(html=502)
        with pytest.raises(RailUnavailable):
            await shop.rail.verify(authorization, shop.offer)
        node.faults.clear()
        intent, claim = await shop.prepare(authorization)
        node.faults["sendTransaction"] = Fault(error={"code": -32602, "message": "no"}, forward=False, times=1)
        assert (await shop.rail.send(intent)).state == "pending"
        outcome = await shop.rail.wait(claim, 5)
        assert outcome.state == "settled"
        # Some nodes name no level: rooted is what has no number of confirmations.
        for found, state in (({"confirmations": None}, "settled"), ({"confirmations": 3}, "pending")):
            value = {"slot": outcome.block, "err": None, **found}
            node.faults["getSignatureStatuses"] = Fault(result={"context": {"slot": 9}, "value": [value]})
            assert (await outcome_of(shop, claim)).state == state
        for garbage in ([{"slot": -1}], [5], "x", [{"slot": 1, "confirmationStatus": "maybe"}]):
            node.faults["getSignatureStatuses"] = Fault(result={"context": {"slot": 9}, "value": garbage})
            assert (await outcome_of(shop, claim)).state == "pending"


async def test_D05_a_listed_mint_of_token_2022_is_settled(svm: SvmDevnet) -> None:
    mint, program = str(Keypair().pubkey()), str(TOKEN_2022)
    asset = Asset(USDC.network, mint, "TOK", 6)
    svm.set_mint(mint, program=program)
    pay_to = str(Keypair().pubkey())
    for owner, amount in ((pay_to, 0), (svm.accounts[1].address, PRICE)):
        svm.set_tokens(owner, amount, mint=mint, program=program)
    async with svm_seller(svm, pay_to=pay_to, asset=asset, token_2022=frozenset((mint,))) as shop:
        await shop.rail.ready()
        keys: Any = {"mint": Pubkey.from_string(mint), "program": TOKEN_2022}
        steps = standard(shop.payer.pubkey(), pay_to=pay_to, **keys)
        _, outcome = await shop.settle(shop.authorize(shop.payload(steps)))
        assert outcome.state == "settled"
        assert shop.received() == PRICE


async def test_the_seller_may_ask_for_a_memo(svm: SvmDevnet) -> None:
    async with svm_seller(svm, memo="order 7") as shop:
        assert shop.rail.extra()["memo"] == "order 7"
        pay = [*compute(), transfer(shop.payer.pubkey(), shop.rail.pay_to)]
        for steps, reason in (
            ([*pay, memo("order 8")], "memo_mismatch"),
            ([*pay, memo("order 7"), memo("order 7")], "memo_count"),
            (pay, "memo_count"),
        ):
            with pytest.raises(PaymentRefused, match=reason):
                shop.authorize(shop.payload(steps))
        _, outcome = await shop.settle(shop.authorize(shop.payload([*pay, memo("order 7")])))
        assert outcome.state == "settled"


async def test_D03_the_rent_leaves_the_price_when_the_account_is_there(svm: SvmDevnet) -> None:
    now = 1_000_000_000.0
    options: Any = {"relaxed": True, "create_recipient": True, "clock": lambda: now}
    async with svm_seller(svm, account=False, fees=FeePolicy(SOL, margin_percent=0), **options) as shop:
        dear = shop.rail.surcharge()
        svm.set_tokens(shop.rail.pay_to, 0)
        meter = shop.rail._meter  # pyright: ignore[reportPrivateUsage]  # instead of five minutes
        assert meter is not None
        now += 300
        await meter.refresh()
        assert shop.rail.surcharges() == (shop.rail.surcharge(), dear)
        assert shop.rail.surcharge() < dear
        assert "createRecipientAccount" not in shop.rail.extra()
        steps = [creation(shop.fee_payer, shop.rail.pay_to), transfer(shop.payer.pubkey(), shop.rail.pay_to)]
        payload = shop.payload(steps)
        # Whoever was quoted the rent may still create, for as long as that challenge lives.
        shop.rail.check(shop.parse(payload), shop.offer, int(now))
        with pytest.raises(PaymentRefused, match="create_ata"):
            shop.rail.check(shop.parse(payload), shop.offer, int(now) + 400)


async def test_J05_a_scan_that_can_not_be_read_says_so(svm: SvmDevnet, node: FaultyRpc) -> None:
    async with svm_seller(svm, rpc=node.url) as shop:
        await shop.settle(shop.authorize())
        for method in ("getSignaturesForAddress", "getTransaction"):
            node.faults[method] = Fault(html=502)
            with pytest.raises(RailUnavailable):
                assert [each async for each in shop.rail.settled_since(0)] == []
            node.faults[method] = Fault(text="{")
            with pytest.raises(RailUnavailable):
                assert [each async for each in shop.rail.settled_since(0)] == []
            del node.faults[method]
        node.faults["getTransaction"] = Fault(change=lambda found: {**found, "transaction": ["AAAA", "base64"]})
        assert [each async for each in shop.rail.settled_since(0)] == []
        node.faults["getSlot"] = Fault(html=502)
        with pytest.raises(RailUnavailable):
            await shop.rail.head_block()
