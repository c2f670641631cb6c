"""Sending: what is refused, lost, dropped or overtaken, and the settlement wallet's nonces. A real node throughout."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from tests.support.evm_payments import (
    PRICE,
    USDC,
    Seller,
    cancel,
    contract_payload,
    drain,
    expire,
    seller,
    signed_payload,
    submit,
)
from tests.support.faulty_rpc import Fault, faulty_rpc
from tests.support.nonces import MemoryNonces
from x402kit.devnet import EvmDevnet
from x402kit.errors import ConfigError, RailUnavailable
from x402kit.model import Intent, Outcome
from x402kit.networks.evm import keccak
from x402kit.networks.evm_abi import Transaction, parse_transaction, transfer_data
from x402kit.networks.evm_wallet import Wallet

USED = "invalid_exact_evm_nonce_already_used"
BURN_ALL_GAS = "0x5b5f56"
FUNDS = {"code": -32000, "message": "insufficient funds for gas * price + value: balance 0 at http://node.internal"}


def counts(chain: EvmDevnet) -> tuple[int, int]:
    """The settlement wallet's nonce on chain, and with what waits."""
    address = chain.accounts[0].address
    return tuple(int(chain.rpc("eth_getTransactionCount", address, tag), 16) for tag in ("latest", "pending"))  # type: ignore[return-value]


async def test_a_payment_settles_with_its_transfer_on_chain(chain: EvmDevnet) -> None:
    async with seller(chain) as shop:
        await shop.rail.ready()
        claim, outcome = await shop.settle(shop.authorize())
        assert outcome.state == "settled"
        assert shop.received() == PRICE
        receipt = chain.rpc("eth_getTransactionReceipt", claim.reference)
        assert outcome.reference == claim.reference == receipt["transactionHash"]
        assert (outcome.block, outcome.block_hash) == (int(receipt["blockNumber"], 16), receipt["blockHash"])
        assert outcome.log_index == int(receipt["logs"][1]["logIndex"], 16)
        assert not outcome.final


async def test_the_hash_is_known_before_anything_is_sent(chain: EvmDevnet) -> None:
    async with faulty_rpc(chain.rpc_url) as node, seller(chain, rpc=node.url) as shop:
        intent, _ = await shop.prepare(shop.authorize())
        assert node.seen["eth_sendRawTransaction"] == 0
        assert intent.reference == "0x" + keccak(intent.blob).hex()
        assert intent.wallet == f"8453:{chain.accounts[0].address}"
        sent = parse_transaction(intent.blob)[0]
        assert (sent.chain_id, sent.nonce, sent.to) == (8453, intent.nonce, USDC.address.lower())


async def test_I02_waiting_ends_in_unknown_and_the_truth_comes_later(chain: EvmDevnet) -> None:
    chain.set_automine(False)
    async with seller(chain) as shop:
        started = time.monotonic()
        claim, outcome = await shop.settle(shop.authorize(), seconds=0.3)
        assert (outcome.state, outcome.reference, outcome.resend) == ("pending", claim.reference, False)
        assert time.monotonic() - started < 15
        assert (await shop.rail.outcome(claim)).state == "pending"
        chain.mine()
        assert (await shop.rail.outcome(claim)).state == "settled"


LOST = {
    "dropped after": (Fault(drop=True), True),
    "dropped before": (Fault(drop=True, forward=False), False),
    "garbage after": (Fault(text="<html>"), True),
    "502 after": (Fault(html=502), True),
    "502 before": (Fault(html=502, forward=False), False),
    "slow": (Fault(delay=1), True),
    "rate limit": (Fault(forward=False, error={"code": -32005, "message": "limit exceeded"}), False),
    "internal error": (Fault(forward=False, error={"code": -32603, "message": "internal error"}), False),
    "already known": (Fault(error={"code": -32000, "message": "already known"}), True),
    "nonce too low": (Fault(error={"code": -32000, "message": "nonce too low: next nonce 9, tx nonce 0"}), True),
}


@pytest.mark.parametrize("name", sorted(LOST))
async def test_I02_I03_a_lost_answer_to_the_broadcast_is_never_failed(chain: EvmDevnet, name: str) -> None:
    fault, arrived = LOST[name]
    async with faulty_rpc(chain.rpc_url) as node, seller(chain, rpc=node.url, rpc_seconds=0.4) as shop:
        intent, claim = await shop.prepare(shop.authorize())
        node.faults["eth_sendRawTransaction"] = fault
        outcome = await shop.rail.send(intent)
        assert (outcome.state, outcome.reference) == ("pending", intent.reference)
        node.faults.clear()
        chain.mine()
        outcome = await shop.rail.outcome(claim)
        if not arrived:
            assert (outcome.state, outcome.resend) == ("pending", True)
            assert (await shop.rail.send(intent)).state == "pending"
            outcome = await shop.rail.wait(claim, 5)
        assert outcome.state == "settled"
        assert shop.received() == PRICE


@pytest.mark.parametrize(
    "error",
    [
        FUNDS,
        {"code": -32000, "message": "transaction underpriced: tip needed 1"},
        {"code": -32003, "message": "max fee per gas less than block base fee"},
        {"code": -32000, "message": "intrinsic gas too low"},
        {"code": -32000, "message": "txpool is full"},
    ],
    ids=lambda error: error["message"][:20],
)
async def test_I05_a_certain_refusal_is_failed_and_gives_the_nonce_back(
    chain: EvmDevnet, error: dict[str, Any]
) -> None:
    async with faulty_rpc(chain.rpc_url) as node, seller(chain, rpc=node.url) as shop:
        intent, _ = await shop.prepare(shop.authorize())
        node.faults["eth_sendRawTransaction"] = Fault(forward=False, error=error)
        outcome = await shop.rail.send(intent)
        assert (outcome.state, outcome.never_sent, outcome.resend) == ("failed", True, False)
        assert "node.internal" not in str(outcome)
        await shop.rail.discard(intent, shop.nonces)
        assert shop.nonces.freed == [intent.nonce]


async def test_I01_a_refused_connection_is_failed_only_on_the_first_try(chain: EvmDevnet) -> None:
    async with faulty_rpc(chain.rpc_url) as node:
        shop = Seller(chain, await started(chain, node.url), MemoryNonces())
        intent, _ = await shop.prepare(shop.authorize())
        again, _ = await shop.prepare(shop.authorize())
        await shop.rail.send(again)
    assert await shop.rail.send(intent) == Outcome("failed", "unexpected_settle_error", never_sent=True)
    assert (await shop.rail.send(again)).state == "pending"
    await shop.rail.close()


async def started(chain: EvmDevnet, url: str) -> Any:
    from x402kit.networks import Base

    rail = Base(pay_to="0x00000000000000000000000000000000C0FfeE00", key=chain.accounts[0].private_key, rpc=url)
    await rail.start()
    return rail


async def test_I02_after_a_restart_no_refusal_of_the_broadcast_is_certain(chain: EvmDevnet) -> None:
    """The process that died may have sent it: only the chain can say."""
    async with faulty_rpc(chain.rpc_url) as node, seller(chain, rpc=node.url) as shop:
        intent, claim = await shop.prepare(shop.authorize())
        async with seller(chain, rpc=node.url) as after:
            node.faults["eth_sendRawTransaction"] = Fault(forward=False, error=FUNDS)
            assert (await after.rail.send(intent)).state == "pending"
            node.faults.clear()
            assert (await after.rail.outcome(claim)).resend
            await after.rail.send(intent)
            assert (await after.rail.wait(claim, 5)).state == "settled"


async def test_I07_a_dropped_transaction_is_sent_again_as_it_was(chain: EvmDevnet) -> None:
    chain.set_automine(False)
    async with seller(chain) as shop:
        claim, _ = await shop.settle(shop.authorize(), seconds=0.1)
        chain.rpc("anvil_dropTransaction", claim.reference)
        outcome = await shop.rail.outcome(claim)
        assert (outcome.state, outcome.resend) == ("pending", True)
        await shop.rail.send(Intent(claim.reference, claim.intent, claim.wallet, claim.nonce))
        assert not (await shop.rail.outcome(claim)).resend
        chain.mine()
        assert (await shop.rail.outcome(claim)).state == "settled"


async def test_I07_dropped_until_it_expired_is_failed_and_leaves_no_gap(chain: EvmDevnet) -> None:
    chain.set_automine(False)
    async with seller(chain) as shop:
        lost, _ = await shop.settle(shop.authorize(), seconds=0.1)
        chain.rpc("anvil_dropTransaction", lost.reference)
        expire(chain)
        waiting_authorization = shop.authorize(valid_before=int(time.time()) + 7200)
        intent, _ = await shop.prepare(waiting_authorization)
        await shop.rail.send(intent)
        assert intent.nonce == lost.nonce + 1
        outcome = await shop.rail.outcome(lost)
        assert (outcome.state, outcome.never_sent) == ("failed", False)
        assert outcome.reason == "invalid_exact_evm_payload_authorization_valid_before"
        chain.mine()
        assert counts(chain) == (intent.nonce + 1, intent.nonce + 1)
        assert shop.received() == 0


async def test_I07_expired_but_the_gap_is_still_open_is_pending(chain: EvmDevnet) -> None:
    """The claim is what remembers the gap."""
    chain.set_automine(False)
    async with faulty_rpc(chain.rpc_url) as node, seller(chain, rpc=node.url) as shop:
        claim, _ = await shop.settle(shop.authorize(), seconds=0.1)
        chain.rpc("anvil_dropTransaction", claim.reference)
        expire(chain)
        node.faults["eth_sendRawTransaction"] = Fault(forward=False, error=FUNDS)
        assert (await shop.rail.outcome(claim)).state == "pending"
        node.faults.clear()
        assert (await shop.rail.outcome(claim)).state == "failed"


async def test_I07_stuck_in_the_pool_until_it_expired_is_replaced(own_chain: EvmDevnet) -> None:
    chain = own_chain
    chain.set_automine(False)
    async with seller(chain) as shop:
        claim, _ = await shop.settle(shop.authorize(), seconds=0.1)
    chain.rpc("anvil_setNextBlockBaseFeePerGas", hex(3 * 10**9))  # above what it offered, below the cap
    chain.rpc("evm_increaseTime", 7300)
    chain.mine()
    async with seller(chain) as later:
        assert (await later.rail.outcome(claim)).state == "failed"
        chain.mine()
    assert counts(chain) == (claim.nonce + 1, claim.nonce + 1)
    assert chain.rpc("eth_getTransactionReceipt", claim.reference) is None


async def test_I07_above_the_fee_cap_the_gap_stays_open_and_the_claim_with_it(own_chain: EvmDevnet) -> None:
    chain = own_chain
    chain.set_automine(False)
    async with seller(chain) as shop:
        claim, _ = await shop.settle(shop.authorize(), seconds=0.1)
    chain.rpc("anvil_setNextBlockBaseFeePerGas", hex(10**12))
    chain.rpc("evm_increaseTime", 7300)
    chain.mine()
    async with seller(chain) as later:
        assert (await later.rail.outcome(claim)).state == "pending"


async def test_I07_replaced_by_another_transaction_of_the_wallet(chain: EvmDevnet) -> None:
    """Our nonce is spent, the authorization is not: whether it could still go through decides."""
    chain.set_automine(False)
    async with seller(chain) as shop:
        claim, _ = await shop.settle(shop.authorize(), seconds=0.1)
        key = chain.accounts[0].private_key
        other = Transaction(8453, claim.nonce, 10**10, 10**11, 30_000, chain.accounts[0].address, b"")
        chain.rpc("eth_sendRawTransaction", "0x" + (await Wallet(key).sign(other)).hex())
        chain.mine()
        outcome = await shop.rail.outcome(claim)
        assert (outcome.state, outcome.resend) == ("pending", False)
        chain.set_automine(True)
        chain.send_as_minter("pause()")
        outcome = await shop.rail.outcome(claim)
        assert (outcome.state, outcome.reason) == ("failed", "invalid_exact_evm_transaction_simulation_failed")
        chain.send_as_minter("unpause()")
        expire(chain)
        assert (await shop.rail.outcome(claim)).state == "failed"


async def test_B06_somebody_else_submits_it_first(chain: EvmDevnet) -> None:
    async with seller(chain) as shop:
        authorization = shop.authorize()
        intent, claim = await shop.prepare(authorization)
        theirs = submit(chain, transfer_data(authorization.body))
        assert (await shop.rail.send(intent)).state == "pending"
        outcome = await shop.rail.wait(claim, 5)
        assert (outcome.state, outcome.reference) == ("settled", theirs)
        assert outcome.log_index >= 0
        assert shop.received() == PRICE
        assert (await shop.rail.outcome(claim._replace(reference=theirs, state="settled"))).state == "settled"


async def test_B06_I06_ours_was_dropped_and_somebody_else_submits_it(chain: EvmDevnet) -> None:
    chain.set_automine(False)
    async with seller(chain) as shop:
        authorization = shop.authorize()
        claim, _ = await shop.settle(authorization, seconds=0.1)
        chain.rpc("anvil_dropTransaction", claim.reference)
        theirs = submit(chain, transfer_data(authorization.body))
        outcome = await shop.rail.outcome(claim)
        assert (outcome.state, outcome.reference) == ("settled", theirs)


async def test_B07_drained_between_verify_and_settle(chain: EvmDevnet) -> None:
    async with seller(chain) as shop:
        authorization = shop.authorize()
        await shop.rail.verify(authorization, shop.offer)
        intent, claim = await shop.prepare(authorization)
        drain(chain)
        await shop.rail.send(intent)
        outcome = await shop.rail.wait(claim, 5)
        assert (outcome.state, outcome.reason) == ("failed", "invalid_exact_evm_insufficient_balance")
        assert not outcome.never_sent
        assert shop.received() == 0


async def test_B07_drained_and_refilled_is_not_failed_until_it_expires(chain: EvmDevnet) -> None:
    """While it could still go through, a fresh challenge would invite a second payment."""
    async with seller(chain) as shop:
        authorization = shop.authorize()
        intent, claim = await shop.prepare(authorization)
        drain(chain)
        await shop.rail.send(intent)
        chain.mine()
        chain.mint(chain.accounts[1].address, PRICE)
        assert (await shop.rail.outcome(claim)).state == "pending"
        theirs = submit(chain, transfer_data(authorization.body))
        outcome = await shop.rail.outcome(claim)
        assert (outcome.state, outcome.reference) == ("settled", theirs)


async def test_B07_cancelled_between_verify_and_settle(chain: EvmDevnet) -> None:
    async with seller(chain) as shop:
        authorization = shop.authorize()
        await shop.rail.verify(authorization, shop.offer)
        intent, claim = await shop.prepare(authorization)
        cancel(chain, chain.accounts[1], authorization.body.nonce)
        await shop.rail.send(intent)
        outcome = await shop.rail.wait(claim, 5)
        assert (outcome.state, outcome.reason) == ("failed", USED)


async def test_B08_a_wallet_contract_changes_its_mind(chain: EvmDevnet) -> None:
    owner = chain.accounts[2]
    wallet = chain.deploy_erc1271_wallet(owner.address)
    chain.mint(wallet, PRICE)
    async with seller(chain) as shop:
        authorization = shop.authorize(contract_payload(wallet, owner))
        await shop.rail.verify(authorization, shop.offer)
        intent, claim = await shop.prepare(authorization)
        chain.set_code(wallet, "0x5f5ffd")
        await shop.rail.send(intent)
        outcome = await shop.rail.wait(claim, 5)
        assert (outcome.state, outcome.reason) == ("failed", "invalid_exact_evm_payload_signature")


@pytest.mark.parametrize("action", ["pause()", "blacklist(address)"])
async def test_B12_refused_by_the_token_after_verify(chain: EvmDevnet, action: str) -> None:
    async with seller(chain) as shop:
        authorization = shop.authorize()
        await shop.rail.verify(authorization, shop.offer)
        intent, claim = await shop.prepare(authorization)
        chain.send_as_minter(action, *([chain.accounts[1].address] if "address" in action else []))
        await shop.rail.send(intent)
        outcome = await shop.rail.wait(claim, 5)
        assert (outcome.state, outcome.reason) == ("failed", "invalid_exact_evm_transaction_simulation_failed")


async def test_B11_a_token_that_burns_gas_burns_no_more_than_the_limit(chain: EvmDevnet) -> None:
    async with seller(chain) as shop:
        intent, claim = await shop.prepare(shop.authorize())
        chain.set_code(chain.usdc, BURN_ALL_GAS)
        await shop.rail.send(intent)
        chain.mine()
        receipt = chain.rpc("eth_getTransactionReceipt", claim.reference)
        assert (receipt["status"], int(receipt["gasUsed"], 16)) == ("0x0", 150_000)
        assert (await shop.rail.outcome(claim)).state == "pending"
        with pytest.raises(RailUnavailable):
            await shop.rail.verify(shop.authorize(), shop.offer)


async def test_B13_the_same_bytes_on_a_chain_with_the_same_token_address() -> None:
    with EvmDevnet() as base, EvmDevnet() as other:
        other.rpc("anvil_setChainId", 84532)
        async with seller(base) as shop:
            intent, _ = await shop.prepare(shop.authorize())
            assert (await shop.rail.send(intent)).state == "pending"
        with pytest.raises(Exception, match=r"(?i)chain"):
            other.rpc("eth_sendRawTransaction", "0x" + intent.blob.hex())
        with pytest.raises(ConfigError, match="eip155:84532"):
            async with seller(other):
                pass


async def test_B15_many_at_once_from_one_wallet(chain: EvmDevnet) -> None:
    async with seller(chain) as shop:
        authorizations = [shop.authorize() for _ in range(20)]
        settled = await asyncio.gather(*(shop.settle(a, 30) for a in authorizations))
        assert {outcome.state for _, outcome in settled} == {"settled"}
        assert sorted(claim.nonce for claim, _ in settled) == list(range(20))
        assert shop.received() == 20 * PRICE


async def test_B15_two_processes_share_one_wallet(chain: EvmDevnet) -> None:
    nonces = MemoryNonces()
    async with seller(chain, nonces=nonces) as one, seller(chain, nonces=nonces) as two:
        settled = await asyncio.gather(*(shop.settle(shop.authorize(), 30) for shop in (one, two) * 5))
        assert {outcome.state for _, outcome in settled} == {"settled"}
        assert one.received() == 10 * PRICE


async def test_B15_a_refused_send_in_the_middle_leaves_no_gap(chain: EvmDevnet) -> None:
    chain.set_automine(False)
    async with faulty_rpc(chain.rpc_url) as node, seller(chain, rpc=node.url) as shop:
        prepared = [await shop.prepare(shop.authorize()) for _ in range(5)]
        unlucky = "0x" + prepared[2][0].blob.hex()
        node.faults["eth_sendRawTransaction"] = Fault(
            forward=False, error=FUNDS, when=lambda params: params == [unlucky]
        )
        outcomes = [await shop.rail.send(intent) for intent, _ in prepared]
        assert [outcome.state for outcome in outcomes] == ["pending", "pending", "failed", "pending", "pending"]
        await shop.rail.discard(prepared[2][0], shop.nonces)
        assert shop.nonces.freed == []  # used up by an empty transfer: later ones are on their way
        chain.mine()
        states = [(await shop.rail.outcome(claim)).state for _, claim in prepared]
        assert states == ["settled", "settled", "pending", "settled", "settled"]
        assert shop.received() == 4 * PRICE


async def test_B15_the_last_one_refused_frees_its_nonce_for_the_next(chain: EvmDevnet) -> None:
    async with faulty_rpc(chain.rpc_url) as node, seller(chain, rpc=node.url) as shop:
        node.faults["eth_sendRawTransaction"] = Fault(forward=False, error=FUNDS, times=1)
        intent, _ = await shop.prepare(shop.authorize())
        assert (await shop.rail.send(intent)).state == "failed"
        await shop.rail.discard(intent, shop.nonces)
        claim, outcome = await shop.settle(shop.authorize())
        assert (claim.nonce, outcome.state) == (intent.nonce, "settled")


async def test_B15_the_wallet_was_used_elsewhere(chain: EvmDevnet) -> None:
    """The allocator's floor is the chain's count, so a wallet that somebody else used too goes on."""
    async with seller(chain) as shop:
        await shop.settle(shop.authorize())
        chain.rpc("anvil_setNonce", chain.accounts[0].address, hex(9))
        claim, outcome = await shop.settle(shop.authorize(), seconds=0.2)
        assert (claim.nonce, outcome.state) == (1, "pending")
        claim, outcome = await shop.settle(shop.authorize())
        assert (claim.nonce, outcome.state) == (9, "settled")


async def test_a_payload_for_another_payer_does_not_matter_here(chain: EvmDevnet) -> None:
    async with seller(chain) as shop:
        other = signed_payload(chain.accounts[2])
        _, outcome = await shop.settle(shop.authorize(other))
        assert outcome.state == "settled"
        assert chain.balance_of(chain.accounts[2].address) == 10**7 - PRICE
