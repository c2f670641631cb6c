"""Paying out from the settlement wallet: once, whatever is lost, dropped, refused or reorganised. A real node."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from tests.support.evm_payments import NETWORK, PAY_TO, PRICE, USDC, Seller, offer_for, seller, signed_payload
from tests.support.faulty_rpc import Fault, faulty_rpc
from x402kit.devnet import EvmDevnet
from x402kit.devnet.contracts import encode
from x402kit.devnet.evm import ACCOUNTS
from x402kit.devnet.fiat_token import MINTER
from x402kit.errors import BadRequest, ConfigError, RailUnavailable
from x402kit.model import Claim, Intent, Outcome
from x402kit.networks import Base
from x402kit.networks.evm_abi import Transaction, parse_transaction
from x402kit.networks.evm_wallet import Wallet
from x402kit.networks.port import paying

WALLET = ACCOUNTS[0]
OWNER = "0x00000000000000000000000000000000000ba1Ce"
AMOUNT = 250_000
FUNDS = 1_000_000
FINAL = 4
ANSWER_ONE = "0x60015f5260205ff3"
PRUNED = {"code": -32000, "message": "missing trie node"}
REFUSED = {"code": -32000, "message": "insufficient funds for gas * price + value"}


@asynccontextmanager
async def payer(chain: EvmDevnet, *, funds: int = FUNDS, **options: Any) -> AsyncGenerator[Seller]:
    """A rail whose settlement wallet is its recipient, and holds ``funds``."""
    if funds:
        chain.mint(WALLET.address, funds)
    async with seller(chain, pay_to=WALLET.address, final_depth=FINAL, **options) as shop:
        yield shop


async def prepare(shop: Seller, to: str = OWNER, amount: int = AMOUNT) -> tuple[Intent, Claim]:
    """A payout, and the row that the store would hold."""
    intent = await shop.rail.prepare_payout(to, amount, shop.nonces)
    row = Claim(
        payment_id="payout:1",
        state="sent",
        fingerprint=b"",
        credential=b"",
        resource="",
        network=NETWORK,
        asset=USDC.address,
        pay_to=shop.rail.pay_to,
        payer=to,
        amount=amount,
        valid_until=0,
        created_at=int(time.time()),
        deadline=0,
        confirmations=shop.rail.confirmations,
        reference=intent.reference,
        intent=intent.blob,
        wallet=intent.wallet,
        nonce=intent.nonce,
    )
    return intent, row


async def sent(shop: Seller, to: str = OWNER, amount: int = AMOUNT) -> Claim:
    """A payout that was broadcast."""
    intent, row = await prepare(shop, to, amount)
    assert (await shop.rail.send(intent)).state == "pending"
    return row


async def land(shop: Seller, intent: Intent) -> None:
    """Broadcast it, and wait until the node has mined it."""
    assert (await shop.rail.send(intent)).state == "pending"
    for _ in range(500):
        if shop.chain.rpc("eth_getTransactionReceipt", intent.reference) is not None:
            return
        await asyncio.sleep(0.01)
    raise TimeoutError("it is not mined")


async def mined(shop: Seller, to: str = OWNER, amount: int = AMOUNT) -> Claim:
    """A payout that is in a block."""
    intent, row = await prepare(shop, to, amount)
    await land(shop, intent)
    return row


def intent_of(row: Claim) -> Intent:
    return Intent(row.reference, row.intent, row.wallet, row.nonce)


async def use_up(chain: EvmDevnet, nonce: int) -> None:
    """Another transaction of the wallet takes a nonce."""
    other = Transaction(8453, nonce, 10**10, 10**11, 30_000, WALLET.address, b"")
    chain.rpc("eth_sendRawTransaction", "0x" + (await Wallet(WALLET.private_key).sign(other)).hex())
    chain.mine()


async def test_E10_a_payout_arrives_once_however_often_it_is_sent(chain: EvmDevnet) -> None:
    async with payer(chain) as shop:
        assert paying(shop.rail).payer_wallet == WALLET.address
        row = await mined(shop)
        outcome = await shop.rail.payout_outcome(row)
        receipt = chain.rpc("eth_getTransactionReceipt", row.reference)
        block = int(receipt["blockNumber"], 16)
        index = int(receipt["logs"][0]["logIndex"], 16)
        assert outcome == Outcome("settled", "", row.reference, block, receipt["blockHash"], index)
        for _ in range(2):
            assert (await shop.rail.send(intent_of(row))).state == "pending"
        chain.mine(FINAL)
        assert (await shop.rail.payout_outcome(row._replace(state="settled"))).final
        assert (chain.balance_of(OWNER), chain.balance_of(WALLET.address)) == (AMOUNT, FUNDS - AMOUNT)


async def test_confirmations_are_blocks_on_top(chain: EvmDevnet) -> None:
    async with payer(chain, confirmations=2) as shop:
        row = await mined(shop)
        head = int(chain.rpc("eth_getTransactionReceipt", row.reference)["blockNumber"], 16)
        outcome = await shop.rail.payout_outcome(row)
        assert (outcome.state, outcome.block, outcome.resend) == ("pending", head, False)
        chain.mine(2)
        assert (await shop.rail.payout_outcome(row)).state == "settled"


async def test_E10_J01_killed_between_storing_and_sending(chain: EvmDevnet) -> None:
    """Another process finds the row, sends the very same bytes, and one transfer comes of it."""
    async with payer(chain) as before:
        intent, row = await prepare(before)
    async with payer(chain, funds=0) as after:
        outcome = await after.rail.payout_outcome(row)
        assert (outcome.state, outcome.resend) == ("pending", True)
        await land(after, intent_of(row))
        await after.rail.send(intent)
        outcome = await after.rail.payout_outcome(row)
        assert (outcome.state, outcome.reference) == ("settled", intent.reference)
        assert chain.balance_of(OWNER) == AMOUNT


async def test_I07_a_dropped_payout_is_sent_again_as_it_was(chain: EvmDevnet) -> None:
    async with payer(chain) as shop:
        chain.set_automine(False)
        row = await sent(shop)
        assert not (await shop.rail.payout_outcome(row)).resend
        chain.rpc("anvil_dropTransaction", row.reference)
        chain.mine(FINAL)
        outcome = await shop.rail.payout_outcome(row)
        assert (outcome.state, outcome.resend) == ("pending", True)
        await shop.rail.send(intent_of(row))
        chain.mine()
        assert (await shop.rail.payout_outcome(row)).state == "settled"
        assert chain.balance_of(OWNER) == AMOUNT


@pytest.mark.parametrize("behind", [0, 1, 5, 23])
async def test_I07_its_nonce_was_taken_by_another_transaction(chain: EvmDevnet, behind: int) -> None:
    """Failed, but not before a reorganisation can no longer free the nonce."""
    async with payer(chain) as shop:
        chain.set_automine(False)
        row = await sent(shop)
        chain.rpc("anvil_dropTransaction", row.reference)
        await use_up(chain, row.nonce)
        chain.mine(FINAL - 1)
        outcome = await shop.rail.payout_outcome(row)
        assert (outcome.state, outcome.resend) == ("pending", False)
        chain.mine(1 + behind)
        outcome = await shop.rail.payout_outcome(row)
        assert (outcome.state, outcome.reason, outcome.resend) == ("failed", "payout_nonce_used", False)
        chain.set_automine(True)
        await shop.rail.send(intent_of(row))
        assert chain.balance_of(OWNER) == 0


async def test_I09_a_receipt_that_is_not_there_proves_nothing(chain: EvmDevnet) -> None:
    """A replica that lags knows no receipt, while another says that the nonce is used: by ourselves."""
    async with faulty_rpc(chain.rpc_url) as node, payer(chain, rpc=node.url) as shop:
        row = await mined(shop)
        chain.mine(FINAL + 1)
        node.faults["eth_getTransactionReceipt"] = Fault(result=None)
        node.faults["eth_getTransactionByHash"] = Fault(result=None)
        outcome = await shop.rail.payout_outcome(row)
        assert (outcome.state, outcome.resend) == ("pending", False)
        node.faults.clear()
        assert (await shop.rail.payout_outcome(row)).state == "settled"


async def test_I09_a_node_that_forgot_who_used_the_nonce_decides_nothing(chain: EvmDevnet) -> None:
    async with faulty_rpc(chain.rpc_url) as node, payer(chain, rpc=node.url) as shop:
        chain.set_automine(False)
        row = await sent(shop)
        chain.rpc("anvil_dropTransaction", row.reference)
        await use_up(chain, row.nonce)
        chain.mine(FINAL + 9)
        old = int(chain.rpc("eth_blockNumber"), 16) - FINAL - 3
        node.faults["eth_getTransactionCount"] = Fault(error=PRUNED, when=lambda params: int(params[1], 16) < old)
        outcome = await shop.rail.payout_outcome(row)
        assert (outcome.state, outcome.resend) == ("pending", False)
        node.faults.clear()
        assert (await shop.rail.payout_outcome(row)).state == "failed"


async def test_B12_refused_by_the_token_in_its_block(chain: EvmDevnet) -> None:
    """A blacklisted recipient: failed from the final depth on, and not a unit moved."""
    async with payer(chain) as shop:
        intent, row = await prepare(shop)
        chain.send_as_minter("blacklist(address)", OWNER)
        await land(shop, intent)
        chain.mine(FINAL - 1)
        outcome = await shop.rail.payout_outcome(row)
        assert (outcome.state, outcome.resend) == ("pending", False)
        chain.mine()
        outcome = await shop.rail.payout_outcome(row)
        assert (outcome.state, outcome.reason) == ("failed", "payout_reverted")
        assert chain.balance_of(WALLET.address) == FUNDS


async def test_E10_the_wallet_is_drained_between_preparing_and_sending(chain: EvmDevnet) -> None:
    """Two payouts of all that it holds: both could be prepared, one of them can land."""
    async with payer(chain) as shop:
        (first, one), (second, other) = await prepare(shop, PAY_TO, FUNDS), await prepare(shop, OWNER, FUNDS)
        await land(shop, first)
        await land(shop, second)
        chain.mine(FINAL)
        outcomes = [await shop.rail.payout_outcome(row) for row in (one, other)]
        assert [(o.state, o.reason) for o in outcomes] == [("settled", ""), ("failed", "payout_reverted")]
        assert (chain.balance_of(PAY_TO), chain.balance_of(OWNER)) == (FUNDS, 0)


@pytest.mark.parametrize("fault", [{"html": 502}, {"drop": True}, {"text": "<html>"}], ids=["502", "drop", "junk"])
@pytest.mark.parametrize("method", ["eth_call", "eth_getBalance", "eth_getTransactionCount", "*"])
async def test_I01_a_node_that_is_down_prepares_nothing(chain: EvmDevnet, method: str, fault: dict[str, Any]) -> None:
    async with faulty_rpc(chain.rpc_url) as node, payer(chain, rpc=node.url) as shop:
        node.faults[method] = Fault(**fault)
        with pytest.raises(RailUnavailable):
            await prepare(shop)
        assert node.seen["eth_sendRawTransaction"] == 0
        assert not shop.nonces.taken[f"8453:{WALLET.address}"]


async def test_less_in_the_wallet_than_the_payout(chain: EvmDevnet) -> None:
    async with payer(chain, funds=AMOUNT - 1) as shop:
        with pytest.raises(RailUnavailable) as caught:
            await prepare(shop)
        assert caught.value.detail == "the settlement wallet holds less than the payout"
        chain.mint(WALLET.address, 1)
        row = await mined(shop)
        assert (await shop.rail.payout_outcome(row)).state == "settled"


async def test_B16_no_gas_money_for_a_payout(chain: EvmDevnet) -> None:
    async with payer(chain) as shop:
        chain.rpc("anvil_setBalance", WALLET.address, hex(10**9))
        with pytest.raises(RailUnavailable):
            await prepare(shop)


async def test_B16_a_payout_outlasts_dearer_gas_as_far_as_the_wallet_reaches(chain: EvmDevnet) -> None:
    """It has no end, and what is behind it waits: so it offers more, up to the cap or a sixteenth of the coin."""
    async with payer(chain, max_fee_per_gas=5 * 10**9) as shop:
        rich, _ = await prepare(shop)
        assert parse_transaction(rich.blob)[0].max_fee == 5 * 10**9
        chain.rpc("anvil_setBalance", WALLET.address, hex(16 * 150_000 * 3 * 10**9))
        modest, _ = await prepare(shop)
        assert parse_transaction(modest.blob)[0].max_fee == 3 * 10**9
        await land(shop, rich)
        await land(shop, modest)
        assert chain.balance_of(OWNER) == 2 * AMOUNT


@pytest.mark.parametrize(
    ("to", "amount", "reason"),
    [
        ("0x" + "00" * 20, AMOUNT, "invalid_payout_recipient"),
        ("0x" + "00" * 19 + "04", AMOUNT, "invalid_payout_recipient"),
        (USDC.address, AMOUNT, "invalid_payout_recipient"),
        (USDC.address.lower(), AMOUNT, "invalid_payout_recipient"),
        (WALLET.address, AMOUNT, "invalid_payout_recipient"),
        (WALLET.address.lower(), AMOUNT, "invalid_payout_recipient"),
        (OWNER[:-1], AMOUNT, "invalid_payout_recipient"),
        ("9xQeWvG816bUx9EPjHmaT23yvVM2ZWbrrpZb9PusVFin", AMOUNT, "invalid_payout_recipient"),
        ("0x00000000000000000000000000000000000Ba1CE", AMOUNT, "invalid_payout_recipient"),
        (OWNER, 0, "invalid_payout_amount"),
        (OWNER, -1, "invalid_payout_amount"),
        (OWNER, 2**63, "invalid_payout_amount"),
    ],
)
async def test_E09_what_no_payout_can_be(chain: EvmDevnet, to: str, amount: int, reason: str) -> None:
    async with payer(chain) as shop:
        with pytest.raises(BadRequest) as caught:
            await prepare(shop, to, amount)
        assert caught.value.reason == reason
        assert not shop.nonces.taken[f"8453:{WALLET.address}"]


async def test_I05_refused_at_the_door_is_certain_and_gives_the_nonce_back(chain: EvmDevnet) -> None:
    async with faulty_rpc(chain.rpc_url) as node, payer(chain, rpc=node.url) as shop:
        intent, row = await prepare(shop)
        node.faults["eth_sendRawTransaction"] = Fault(forward=False, error=REFUSED, times=1)
        outcome = await shop.rail.send(intent)
        assert (outcome.state, outcome.never_sent) == ("failed", True)
        await shop.rail.discard(intent, shop.nonces)
        assert (await sent(shop)).nonce == row.nonce


async def test_I02_a_lost_answer_to_the_broadcast_is_never_failed(chain: EvmDevnet) -> None:
    async with faulty_rpc(chain.rpc_url) as node, payer(chain, rpc=node.url) as shop:
        intent, row = await prepare(shop)
        node.faults["eth_sendRawTransaction"] = Fault(drop=True)
        assert (await shop.rail.send(intent)).state == "pending"
        chain.mine()
        node.faults["*"] = Fault(html=502)
        outcome = await shop.rail.payout_outcome(row)
        assert (outcome.state, outcome.resend) == ("pending", False)
        assert "http" not in str(outcome)
        node.faults.clear()
        assert (await shop.rail.payout_outcome(row)).state == "settled"


async def test_I08_a_reorganisation_takes_it_back_and_it_is_sent_again(own_chain: EvmDevnet) -> None:
    chain = own_chain
    async with payer(chain) as shop:
        chain.mine(5)
        row = (await mined(shop))._replace(state="settled")
        assert (await shop.rail.payout_outcome(row)).state == "settled"
        chain.set_automine(False)
        chain.rpc("anvil_reorg", 3, [])
        chain.rpc("anvil_dropAllTransactions")
        outcome = await shop.rail.payout_outcome(row)
        assert (outcome.state, outcome.resend, chain.balance_of(OWNER)) == ("pending", True, 0)
        await shop.rail.send(intent_of(row))
        chain.mine()
        assert (await shop.rail.payout_outcome(row)).state == "settled"
        assert chain.balance_of(OWNER) == AMOUNT


async def test_I08_reverted_and_then_landed_after_all(own_chain: EvmDevnet) -> None:
    """Why failed waits: the balance would have had the amount again, and the wallet too."""
    chain = own_chain
    async with payer(chain) as shop:
        chain.mine(5)
        intent, row = await prepare(shop)
        chain.send_as_minter("blacklist(address)", OWNER)
        await land(shop, intent)
        assert (await shop.rail.payout_outcome(row)).state == "pending"
        chain.rpc("anvil_reorg", 3, [["0x" + intent.blob.hex(), 1]])
        assert (await shop.rail.payout_outcome(row)).state == "settled"
        assert chain.balance_of(OWNER) == AMOUNT


async def test_I08_the_reorganisation_puts_a_refusal_before_it(own_chain: EvmDevnet) -> None:
    chain = own_chain
    async with payer(chain) as shop:
        chain.mine(5)
        row = await mined(shop)
        ban = {"from": MINTER, "to": chain.usdc, "data": encode("blacklist(address)", OWNER), "gas": "0x30d40"}
        chain.rpc("anvil_reorg", 3, [[ban, 0], ["0x" + row.intent.hex(), 1]])
        assert (await shop.rail.payout_outcome(row)).state == "pending"
        chain.mine(FINAL)
        assert (await shop.rail.payout_outcome(row)).reason == "payout_reverted"


async def test_B12_a_success_without_its_transfer_is_for_the_operator(
    chain: EvmDevnet, caplog: pytest.LogCaptureFixture
) -> None:
    async with payer(chain) as shop:
        intent, row = await prepare(shop)
        chain.set_code(chain.usdc, ANSWER_ONE)
        await land(shop, intent)
        chain.mine(FINAL)
        outcome = await shop.rail.payout_outcome(row)
        assert (outcome.state, outcome.resend) == ("pending", False)
        assert "ALERT" in caplog.text


async def test_I10_nodes_that_disagree_leave_it_open(chain: EvmDevnet) -> None:
    quorum = {"quorum": 2, "quorum_above": AMOUNT}
    async with (
        faulty_rpc(chain.rpc_url) as one,
        faulty_rpc(chain.rpc_url) as two,
        payer(chain, rpc=[one.url, two.url], **quorum) as shop,
    ):
        row = await mined(shop)
        assert (await shop.rail.payout_outcome(row)).state == "settled"
        two.faults["eth_getTransactionReceipt"] = Fault(change=lambda receipt: {**receipt, "logs": []})
        assert (await shop.rail.payout_outcome(row)).state == "pending"
        two.faults.clear()
        assert (await shop.rail.payout_outcome(row)).state == "settled"


async def test_B15_payouts_and_settlements_share_one_wallet(chain: EvmDevnet) -> None:
    async with payer(chain) as shop:
        payouts = await asyncio.gather(*(mined(shop, amount=AMOUNT + i) for i in range(3)))
        shop.offer = offer_for(pay_to=WALLET.address)
        payment = shop.authorize(signed_payload(chain.accounts[1], to=WALLET.address.lower()))
        claim, outcome = await shop.settle(payment)
        assert (claim.nonce, outcome.state) == (3, "settled")
        assert sorted(row.nonce for row in payouts) == [0, 1, 2]
        assert {(await shop.rail.payout_outcome(row)).state for row in payouts} == {"settled"}
        assert chain.balance_of(WALLET.address) == FUNDS + PRICE - 3 * AMOUNT - 3


async def test_only_the_wallet_that_was_paid_pays_out(chain: EvmDevnet) -> None:
    async with seller(chain) as shop:
        assert shop.rail.payer_wallet == ""
        with pytest.raises(ConfigError, match="not our wallet"):
            paying(shop.rail)
        with pytest.raises(RailUnavailable):
            await prepare(shop)
        assert shop.nonces.taken == {}


async def test_a_rail_through_a_facilitator_pays_nothing_out(chain: EvmDevnet) -> None:
    rail = Base(pay_to=WALLET.address, facilitator="http://127.0.0.1:9", rpc=chain.rpc_url)
    with pytest.raises(ConfigError, match="no settlement wallet"):
        paying(rail)
    with pytest.raises(ConfigError, match="can't pay out"):
        paying(Base(pay_to=WALLET.address, facilitator="http://127.0.0.1:9"))
    await rail.close()
