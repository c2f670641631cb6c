"""What the chain says of a settlement: depth, reorganisations, replicas that lag, nodes that disagree, odd tokens."""

from __future__ import annotations

import asyncio
import secrets
from dataclasses import replace
from typing import Any

import pytest

from tests.support.evm_payments import PAY_TO, PRICE, USDC, Seller, expire, seller, submit
from tests.support.faulty_rpc import Fault, FaultyRpc, faulty_rpc
from x402kit.devnet import EvmDevnet
from x402kit.devnet.contracts import encode
from x402kit.devnet.fiat_token import MINTER
from x402kit.model import Claim, Intent, Json, Outcome
from x402kit.networks import evm_chain
from x402kit.networks.evm_abi import address_word, topic, transfer_data, word
from x402kit.networks.evm_logs import Transferred, find_transfer
from x402kit.networks.evm_reads import Log, Receipt

MISMATCH = "invalid_exact_evm_transfer_event_mismatch"
HEADER_NOT_FOUND = {"code": -32000, "message": "header not found"}
PAYER = "0x70997970c51812dc3a010c7d01b50e0d17dc79c8"
TRANSFER = "Transfer(address,address,uint256)"
AUTHORIZATION_USED = "AuthorizationUsed(address,bytes32)"


def emitting(*events: tuple[str, bytes, bytes, int | None]) -> str:
    """Code that emits (event, topic, topic, a word of data or none) whatever it is asked, and returns 1."""
    code = b""
    for event, first, second, data in events:
        if data is not None:
            code += b"\x7f" + word(data) + b"\x5f\x52"
        for item in (second, first, bytes.fromhex(topic(event)[2:])):
            code += b"\x7f" + item
        code += (b"\x60\x20" if data is not None else b"\x5f") + b"\x5f\xa3"
    return "0x" + (code + b"\x60\x01\x5f\x52\x60\x20\x5f\xf3").hex()


async def sent(shop: Seller, authorization: Any = None) -> Claim:
    """A settlement that is mined."""
    intent, claim = await shop.prepare(authorization or shop.authorize())
    await shop.rail.send(intent)
    shop.chain.mine()
    return claim


async def test_confirmations_are_blocks_on_top(chain: EvmDevnet) -> None:
    chain.set_automine(False)
    async with seller(chain, confirmations=2, final_depth=4) as shop:
        claim = await sent(shop)
        outcome = await shop.rail.outcome(claim)
        assert (outcome.state, outcome.block > 0) == ("pending", True)
        chain.mine()
        assert (await shop.rail.outcome(claim)).state == "pending"
        chain.mine()
        outcome = await shop.rail.outcome(claim)
        assert (outcome.state, outcome.final) == ("settled", False)
        chain.mine(2)
        assert (await shop.rail.outcome(claim)).final


async def test_a_price_may_ask_for_more_confirmations_than_the_rail(chain: EvmDevnet) -> None:
    chain.set_automine(False)
    async with seller(chain) as shop:
        claim = await sent(shop)
        assert (await shop.rail.outcome(claim._replace(confirmations=3))).state == "pending"
        assert (await shop.rail.outcome(claim)).state == "settled"


async def test_wait_sees_the_confirmations_come(chain: EvmDevnet) -> None:
    chain.set_automine(False)
    async with seller(chain, confirmations=1) as shop:
        claim = await sent(shop)
        waiting = asyncio.create_task(shop.rail.wait(claim, 5))
        await asyncio.sleep(0.05)
        chain.mine()
        assert (await waiting).state == "settled"


@pytest.mark.parametrize("state", ["settled", "served", "credited"])
async def test_I08_a_settlement_is_watched_until_it_is_final(chain: EvmDevnet, state: str) -> None:
    async with seller(chain, final_depth=3) as shop:
        claim = (await sent(shop))._replace(state=state)
        assert not (await shop.rail.outcome(claim)).final
        chain.mine(3)
        assert (await shop.rail.outcome(claim)).final


async def test_I08_a_reorganisation_takes_it_back_and_it_is_sent_again(own_chain: EvmDevnet) -> None:
    chain = own_chain
    chain.mine(5)
    async with seller(chain) as shop:
        claim = (await sent(shop))._replace(state="served")
        assert (await shop.rail.outcome(claim)).state == "settled"
        chain.set_automine(False)
        chain.rpc("anvil_reorg", 3, [])
        chain.rpc("anvil_dropAllTransactions")
        outcome = await shop.rail.outcome(claim)
        assert (outcome.state, outcome.resend) == ("pending", True)
        assert shop.received() == 0
        await shop.rail.send(intent_of(claim))
        chain.mine()
        again = await shop.rail.outcome(claim)
        assert (again.state, shop.received()) == ("settled", PRICE)


async def test_I08_a_reorganisation_that_keeps_it_in_another_block(own_chain: EvmDevnet) -> None:
    chain = own_chain
    chain.mine(5)
    async with seller(chain) as shop:
        claim = await sent(shop)
        before = await shop.rail.outcome(claim)
        chain.rpc("anvil_reorg", 3, [["0x" + claim.intent.hex(), 1]])
        after = await shop.rail.outcome(claim._replace(state="served"))
        assert (after.state, after.reference) == ("settled", before.reference)
        assert after.block_hash != before.block_hash


async def test_I08_a_reorganisation_in_which_it_fails(own_chain: EvmDevnet) -> None:
    chain = own_chain
    chain.mine(5)
    async with seller(chain) as shop:
        claim = await sent(shop)
        assert (await shop.rail.outcome(claim)).state == "settled"
        ban = {"from": MINTER, "to": chain.usdc, "data": encode("blacklist(address)", PAYER), "gas": "0x30d40"}
        chain.rpc("anvil_reorg", 3, [[ban, 0], ["0x" + claim.intent.hex(), 1]])
        chain.mine()
        outcome = await shop.rail.outcome(claim._replace(state="served"))
        assert (outcome.state, outcome.reason) == ("failed", "invalid_exact_evm_transaction_simulation_failed")


def intent_of(claim: Claim) -> Intent:
    return Intent(claim.reference, claim.intent, claim.wallet, claim.nonce)


async def test_I09_a_replica_that_lags_never_refuses(chain: EvmDevnet) -> None:
    """It knows no receipt, an old head, and nothing of the blocks that it has not seen."""
    head = int(chain.rpc("eth_blockNumber"), 16)
    block = chain.rpc("eth_getBlockByNumber", "latest", False)
    async with faulty_rpc(chain.rpc_url) as node, seller(chain, rpc=node.url) as shop:
        claim = await sent(shop)
        chain.rpc("evm_increaseTime", 7300)
        chain.mine()
        node.faults["eth_getTransactionReceipt"] = Fault(result=None)
        node.faults["eth_getTransactionByHash"] = Fault(result=None)
        node.faults["eth_blockNumber"] = Fault(result=hex(head))
        node.faults["eth_getBlockByNumber"] = Fault(result=block)
        assert (await shop.rail.outcome(claim)).state == "pending"
        # A newer head from one replica, state from another that has not got so far:
        del node.faults["eth_getBlockByNumber"]
        node.faults["eth_call"] = Fault(error=HEADER_NOT_FOUND, when=lambda params: int(params[1], 16) > head)
        assert (await shop.rail.outcome(claim)).state == "pending"
        node.faults.clear()
        assert (await shop.rail.outcome(claim)).state == "settled"


async def test_I09_a_lost_receipt_is_found_by_the_event(chain: EvmDevnet) -> None:
    async with faulty_rpc(chain.rpc_url) as node, seller(chain, rpc=node.url) as shop:
        claim = await sent(shop)
        node.faults["eth_getTransactionReceipt"] = Fault(result=None, times=1)
        assert (await shop.rail.outcome(claim)).state == "settled"
        node.faults["eth_getTransactionReceipt"] = Fault(result=None)
        assert (await shop.rail.outcome(claim)).state == "pending"


async def test_I09_every_read_behind_a_failure_names_its_block(chain: EvmDevnet) -> None:
    tags: list[str] = []

    def note(params: list[Any]) -> bool:
        tags.append(params[1])
        return False

    async with faulty_rpc(chain.rpc_url) as node, seller(chain, rpc=node.url) as shop:
        claim = await reverted(shop)
        node.faults["eth_call"] = node.faults["eth_getTransactionCount"] = Fault(when=note)
        assert (await shop.rail.outcome(claim)).state == "failed"
    assert tags
    assert all(tag == hex(int(tag, 16)) for tag in tags)


async def reverted(shop: Seller) -> Claim:
    """A settlement that the token refused in a block."""
    authorization = shop.authorize()
    shop.chain.send_as_minter("blacklist(address)", authorization.payer)
    shop.chain.set_automine(False)
    return await sent(shop, authorization)


async def test_I09_a_revert_counts_at_the_same_depth_as_a_success(chain: EvmDevnet) -> None:
    async with seller(chain, confirmations=2) as shop:
        claim = await reverted(shop)
        assert (await shop.rail.outcome(claim)).state == "pending"
        chain.mine()
        assert (await shop.rail.outcome(claim)).state == "pending"
        chain.mine()
        assert (await shop.rail.outcome(claim)).state == "failed"


def without_logs(receipt: Json) -> Json:
    return {**receipt, "logs": [{}]}


LIES: dict[str, dict[str, Fault]] = {
    "another's receipt": {
        "eth_getTransactionReceipt": Fault(change=lambda r: {**r, "transactionHash": "0x" + "11" * 32})
    },
    "no hash": {"eth_getTransactionReceipt": Fault(change=lambda r: {**r, "transactionHash": None})},
    "no logs": {"eth_getTransactionReceipt": Fault(change=lambda r: {**r, "logs": None})},
    "logs of junk": {"eth_getTransactionReceipt": Fault(change=without_logs)},
    "status of junk": {"eth_getTransactionReceipt": Fault(change=lambda r: {**r, "status": "yes"})},
    "text": {"eth_getTransactionReceipt": Fault(result="0x")},
    "list": {"eth_getTransactionReceipt": Fault(result=[])},
    "html": {"*": Fault(html=502)},
    "silence": {"*": Fault(delay=1)},
    "dropped": {"*": Fault(drop=True)},
}


@pytest.mark.parametrize("name", sorted(LIES))
async def test_I03_I09_nonsense_from_the_node_is_pending(chain: EvmDevnet, name: str) -> None:
    async with faulty_rpc(chain.rpc_url) as node, seller(chain, rpc=node.url, rpc_seconds=0.4) as shop:
        claim = await sent(shop)
        node.faults.update(LIES[name])
        outcome = await shop.rail.outcome(claim)
        assert (outcome.state, outcome.resend) == ("pending", False)
        assert "http" not in str(outcome)
        assert (await shop.rail.wait(claim, 0.1)).state == "pending"
        node.faults.clear()
        assert (await shop.rail.wait(claim, 5)).state == "settled"


async def test_I10_nodes_that_disagree_leave_it_unknown(chain: EvmDevnet) -> None:
    async with faulty_rpc(chain.rpc_url) as one, faulty_rpc(chain.rpc_url) as two:
        both = [one.url, two.url]
        async with seller(chain, rpc=both, quorum=2) as shop:
            claim = await sent(shop)
            assert (await shop.rail.outcome(claim)).state == "settled"
            for lie in lies(claim):
                two.faults.update(lie)
                assert (await shop.rail.outcome(claim)).state == "pending", lie
                assert (await shop.rail.wait(claim, 0.1)).state == "pending", lie
                two.faults.clear()
        async with seller(chain, rpc=both, quorum=2, quorum_above=PRICE + 1) as shop:
            two.faults.update(lies(claim)[0])
            assert (await shop.rail.outcome(claim)).state == "settled"


def lies(claim: Claim) -> list[dict[str, Fault]]:
    """What one of two nodes may say of a settled claim."""
    return [
        {"eth_getTransactionReceipt": Fault(result=None), "eth_getLogs": Fault(result=[])},
        {"eth_getTransactionReceipt": Fault(change=lambda r: {**r, "blockHash": "0x" + "ee" * 32})},
        {"eth_getTransactionReceipt": Fault(change=lambda r: {**r, "logs": []})},
        {"*": Fault(html=502)},
    ]


async def test_I10_one_lying_node_can_not_make_a_payment(chain: EvmDevnet) -> None:
    """A made-up receipt passes alone, which is why high prices want two nodes."""
    async with faulty_rpc(chain.rpc_url) as liar:
        async with seller(chain, rpc=[chain.rpc_url, liar.url], quorum=2) as shop:
            claim = await reverted(shop)
            good = await made_up(liar, claim)
            liar.faults["eth_getTransactionReceipt"] = Fault(result=good)
            assert (await shop.rail.outcome(claim)).state == "pending"
        async with seller(chain, rpc=liar.url) as shop:
            assert (await shop.rail.outcome(claim)).state == "settled"


async def made_up(node: FaultyRpc, claim: Claim) -> dict[str, Any]:
    """A receipt as if the claim had been paid."""
    nonce = "0x" + claim.payment_id.rpartition(":0x")[2]
    payer = "0x" + address_word(claim.payer).hex()
    common = {"address": claim.asset, "transactionHash": claim.reference}
    used = {**common, "topics": [topic(AUTHORIZATION_USED), payer, nonce], "data": "0x", "logIndex": "0x0"}
    topics = [topic(TRANSFER), payer, "0x" + address_word(PAY_TO).hex()]
    moved = {**common, "topics": topics, "data": "0x" + word(PRICE).hex(), "logIndex": "0x1"}
    block = {"blockNumber": "0x5", "blockHash": "0x" + "ab" * 32, "status": "0x1"}
    return {**block, "transactionHash": claim.reference, "logs": [used, moved]}


def used_by(shop_nonce: bytes) -> tuple[str, bytes, bytes, None]:
    return (AUTHORIZATION_USED, address_word(PAYER), shop_nonce, None)


@pytest.mark.parametrize("amount", [PRICE - 1, PRICE + 1, 0, None])
async def test_B12_succeeded_without_our_transfer_is_not_paid(chain: EvmDevnet, amount: int | None) -> None:
    """A fee on transfers, or a receiver's own rule: the transaction succeeds, and we did not get the amount."""
    async with seller(chain) as shop:
        authorization = shop.authorize()
        intent, claim = await shop.prepare(authorization)
        events: list[Any] = [used_by(authorization.body.nonce)]
        if amount is not None:
            events.append((TRANSFER, address_word(PAYER), address_word(PAY_TO), amount))
        chain.set_code(chain.usdc, emitting(*events))
        await shop.rail.send(intent)
        outcome = await shop.rail.wait(claim, 5)
        assert outcome == Outcome("failed", MISMATCH, claim.reference, spent=True)


async def test_B11_a_look_alike_transfer_by_another_contract_is_not_paid(chain: EvmDevnet) -> None:
    """The claim points at a transaction of a fake token that emits all the right events."""
    fake = "0x" + "fa" * 20
    async with seller(chain) as shop:
        authorization = shop.authorize()
        intent, claim = await shop.prepare(authorization)
        move = (TRANSFER, address_word(PAYER), address_word(PAY_TO), PRICE)
        chain.set_code(fake, emitting(used_by(authorization.body.nonce), move))
        call = {"from": chain.accounts[5].address, "to": fake, "data": "0x" + transfer_data(authorization.body).hex()}
        receipt = chain.rpc("eth_sendTransactionSync", call)
        assert (receipt["status"], len(receipt["logs"])) == ("0x1", 2)
        forged = claim._replace(reference=receipt["transactionHash"])
        assert (await shop.rail.outcome(forged)).reason == MISMATCH
        await shop.rail.send(intent)
        assert (await shop.rail.wait(claim, 5)).state == "settled"


NONCES = [secrets.token_bytes(32) for _ in range(3)]
WANTED = Transferred(USDC.address.lower(), PAYER, PAY_TO.lower(), PRICE, NONCES[0])


def used(nonce: bytes, payer: str = PAYER, address: str = USDC.address) -> Log:
    topics = (topic(AUTHORIZATION_USED), "0x" + address_word(payer).hex(), "0x" + nonce.hex())
    return Log(address.lower(), topics, b"", 0, "")


def moved(value: int = PRICE, payer: str = PAYER, to: str = PAY_TO, address: str = USDC.address) -> Log:
    topics = (topic(TRANSFER), "0x" + address_word(payer).hex(), "0x" + address_word(to).hex())
    return Log(address.lower(), topics, word(value), 0, "")


@pytest.mark.parametrize(
    ("logs", "index"),
    [
        ([used(NONCES[0]), moved()], 1),
        ([moved(9, address=PAY_TO), used(NONCES[0]), moved()], 2),
        ([moved(), used(NONCES[0])], 0),  # a token that emits in the other order, alone in its transaction
        ([used(NONCES[1]), moved(), used(NONCES[0]), moved()], 3),
        ([used(NONCES[0]), moved(), used(NONCES[1]), moved()], 1),
        ([used(NONCES[1]), moved(), used(NONCES[0]), moved(PRICE - 1)], -1),
        ([used(NONCES[1]), moved()], -1),
        ([used(NONCES[0], payer=PAY_TO), moved()], -1),
        ([used(NONCES[0], address=PAY_TO), moved()], -1),
        ([used(NONCES[0]), moved(address=PAY_TO)], -1),
        ([used(NONCES[0]), moved(to=PAYER)], -1),
        ([used(NONCES[0]), moved(payer=PAY_TO)], -1),
        ([used(NONCES[0]), moved(PRICE + 1)], -1),
        ([moved()], -1),
        ([], -1),
    ],
)
def test_B11_I3_a_transfer_counts_for_its_own_nonce_only(logs: list[Log], index: int) -> None:
    numbered = tuple(replace(log, index=i) for i, log in enumerate(logs))
    assert find_transfer(Receipt("0x", True, 1, "0x", numbered), WANTED) == index
    assert find_transfer(Receipt("0x", False, 1, "0x", numbered), WANTED) == -1


async def test_B06_wait_looks_beyond_our_own_receipt_now_and_then(
    chain: EvmDevnet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evm_chain, "_FULL_LOOK_SECONDS", 0.1)
    chain.set_automine(False)
    async with seller(chain) as shop:
        authorization = shop.authorize()
        claim, _ = await shop.settle(authorization, seconds=0.05)
        chain.rpc("anvil_dropTransaction", claim.reference)
        waiting = asyncio.create_task(shop.rail.wait(claim, 5))
        await asyncio.sleep(0.05)
        theirs = submit(chain, transfer_data(authorization.body))
        outcome = await waiting
        assert (outcome.state, outcome.reference) == ("settled", theirs)


async def test_B12_the_same_when_the_receipt_was_lost_first(chain: EvmDevnet) -> None:
    async with faulty_rpc(chain.rpc_url) as node, seller(chain, rpc=node.url) as shop:
        authorization = shop.authorize()
        intent, claim = await shop.prepare(authorization)
        chain.set_code(chain.usdc, emitting(used_by(authorization.body.nonce)))  # answers 1, "used", to every call
        await shop.rail.send(intent)
        chain.mine()
        node.faults["eth_getTransactionReceipt"] = Fault(result=None, times=1)
        assert await shop.rail.outcome(claim) == Outcome("failed", MISMATCH, claim.reference, spent=True)


async def test_a_spent_claim_without_its_transaction_waits_for_its_end(chain: EvmDevnet) -> None:
    """As a facilitator's: we have its hash and not its bytes."""
    async with seller(chain) as shop:
        claim = (await reverted(shop))._replace(intent=b"", nonce=-1, wallet="")
        assert (await shop.rail.outcome(claim)).state == "pending"
        expire(chain)
        assert (await shop.rail.outcome(claim)).state == "failed"
