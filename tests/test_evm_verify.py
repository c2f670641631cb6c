"""What the chain must say before a payment is sent. A real node, Circle's token, real wallet contracts."""

from __future__ import annotations

import secrets
import time
from typing import Any

import pytest

from tests.support.evm_payments import PAY_TO, PRICE, USDC, cancel, contract_payload, seller, signed_payload
from tests.support.faulty_rpc import Fault, faulty_rpc
from x402kit.devnet import EvmAccount, EvmDevnet
from x402kit.devnet.contracts import encode
from x402kit.errors import PaymentRefused, PaymentUsed, RailUnavailable
from x402kit.model import Json
from x402kit.networks import evm_logs
from x402kit.networks.evm import ERC6492_SUFFIX, address_of
from x402kit.networks.evm_abi import address_word, word

PREFIX = "invalid_exact_evm_payload_"
USED = "invalid_exact_evm_nonce_already_used"
BURN_ALL_GAS = "0x5b5f56"
"""JUMPDEST, PUSH0, JUMP."""


def wrapped(inner: bytes, factory: str, call: bytes = b"\x01\x02") -> bytes:
    """An ERC-6492 wrapper: abi.encode(factory, call, inner) and the suffix."""
    padded = call + bytes(-len(call) % 32)
    head = address_word(factory) + word(96) + word(128 + len(padded))
    return head + word(len(call)) + padded + word(len(inner)) + inner + bytes(-len(inner) % 32) + ERC6492_SUFFIX


async def reason_of(chain: EvmDevnet, payload: Json | None = None, **options: Any) -> str:
    """Why ``verify`` refuses, or an empty string."""
    async with seller(chain, **options) as shop:
        try:
            await shop.rail.verify(shop.authorize(payload), shop.offer)
        except PaymentRefused as e:
            return e.reason
    return ""


async def test_a_good_payment_passes_with_one_call(chain: EvmDevnet) -> None:
    async with faulty_rpc(chain.rpc_url) as node, seller(chain, rpc=node.url) as shop:
        node.seen.clear()
        await shop.rail.verify(shop.authorize(), shop.offer)
        assert dict(node.seen) == {"eth_call": 1}


async def test_B02_B05_balance_too_low(chain: EvmDevnet) -> None:
    key = secrets.token_bytes(32)
    poor = EvmAccount(address_of(key), "0x" + key.hex())
    assert await reason_of(chain, signed_payload(poor)) == "invalid_exact_evm_insufficient_balance"


async def test_B05_used_for_us_is_used_not_refused(chain: EvmDevnet) -> None:
    async with seller(chain) as shop:
        authorization = shop.authorize()
        claim, outcome = await shop.settle(authorization)
        assert outcome.state == "settled"
        with pytest.raises(PaymentUsed) as used:
            await shop.rail.verify(authorization, shop.offer)
        assert (used.value.status, used.value.reason, used.value.reference) == (403, USED, claim.reference)


async def test_B05_used_and_its_event_out_of_sight_is_used(chain: EvmDevnet) -> None:
    """Nobody may be asked to sign anew while it can't be seen where the money went."""
    async with faulty_rpc(chain.rpc_url) as node, seller(chain, rpc=node.url) as shop:
        authorization = shop.authorize()
        await shop.settle(authorization)
        node.faults["eth_getLogs"] = Fault(result=[])
        with pytest.raises(PaymentUsed):
            await shop.rail.verify(authorization, shop.offer)
        node.faults["eth_getLogs"] = Fault(html=502)
        with pytest.raises(RailUnavailable):
            await shop.rail.verify(authorization, shop.offer)


async def test_B05_its_event_is_found_far_back_in_small_steps(
    chain: EvmDevnet, monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_wide(params: list[Any]) -> bool:
        return int(params[0]["toBlock"], 16) - int(params[0]["fromBlock"], 16) >= 20

    monkeypatch.setattr(evm_logs, "_SPAN", 80)
    async with faulty_rpc(chain.rpc_url) as node, seller(chain, rpc=node.url) as shop:
        authorization = shop.authorize()
        claim, _ = await shop.settle(authorization)
        chain.mine(55)
        node.faults["eth_getLogs"] = Fault(error={"code": -32602, "message": "block range is too wide"}, when=too_wide)
        with pytest.raises(PaymentUsed) as used:
            await shop.rail.verify(authorization, shop.offer)
        assert used.value.reference == claim.reference
        assert node.seen["eth_getLogs"] == 4  # one too wide, then three of twenty blocks
        node.faults["eth_getLogs"] = Fault(error={"code": -32602, "message": "no logs here"})
        with pytest.raises(RailUnavailable):
            await shop.rail.verify(authorization, shop.offer)


async def test_B05_the_search_ends_where_no_authorization_of_now_can_reach(
    chain: EvmDevnet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evm_logs, "_SPAN", 20)
    chain.mine(100)
    for later, steps in ((0, 5), (10_000, 1)):
        async with (
            faulty_rpc(chain.rpc_url) as node,
            seller(chain, rpc=node.url, clock=lambda later=later: time.time() + later) as shop,
        ):
            # The token says that it is used, and no event says where.
            node.faults["eth_call"] = Fault(error={"code": 3, "message": "execution reverted: authorization is used"})
            with pytest.raises(PaymentUsed) as used:
                await shop.rail.verify(shop.authorize(), shop.offer)
            assert used.value.reference == ""
            assert node.seen["eth_getLogs"] in (steps, steps + 1)


async def test_B05_cancelled_is_refused(chain: EvmDevnet) -> None:
    async with seller(chain) as shop:
        authorization = shop.authorize()
        cancel(chain, chain.accounts[1], authorization.body.nonce)
        with pytest.raises(PaymentRefused, match=USED):
            await shop.rail.verify(authorization, shop.offer)


async def test_B05_a_used_nonce_of_another_amount_is_refused(chain: EvmDevnet) -> None:
    nonce = secrets.token_bytes(32)
    async with seller(chain) as shop:
        other = shop.offer._replace(amount=7)
        shop.offer, good = other, shop.offer
        assert (await shop.settle(shop.authorize(value=7, nonce=nonce)))[1].state == "settled"
        shop.offer = good
        with pytest.raises(PaymentRefused, match=USED):
            await shop.rail.verify(shop.authorize(nonce=nonce), shop.offer)


async def test_I09_the_words_used_count_though_a_lagging_replica_says_unused(chain: EvmDevnet) -> None:
    async with faulty_rpc(chain.rpc_url) as node, seller(chain, rpc=node.url) as shop:
        authorization = shop.authorize()
        await shop.settle(authorization)
        state = encode("authorizationState(address,bytes32)", shop.chain.accounts[1].address, authorization.body.nonce)
        lags = Fault(result="0x" + "00" * 32, when=lambda params: params[0]["data"] == state)
        node.faults["eth_call"] = lags
        with pytest.raises(PaymentUsed):
            await shop.rail.verify(authorization, shop.offer)


async def test_B08_a_wallet_contract_pays_with_its_owners_signature(chain: EvmDevnet) -> None:
    owner = chain.accounts[2]
    wallet = chain.deploy_erc1271_wallet(owner.address)
    chain.mint(wallet, PRICE)
    async with seller(chain) as shop:
        _, outcome = await shop.settle(shop.authorize(contract_payload(wallet, owner)))
        assert outcome.state == "settled"
        assert shop.received() == PRICE
    assert await reason_of(chain, contract_payload(wallet, chain.accounts[3])) == PREFIX + "signature"


async def test_B08_a_wallet_that_burns_gas_or_answers_too_much_is_refused(chain: EvmDevnet) -> None:
    wallet = "0x" + "ab" * 20
    for code in (BURN_ALL_GAS, "0x5f5ffd", "0x61ffff5ff3", "0x5f5ff3"):
        chain.set_code(wallet, code)
        assert await reason_of(chain, contract_payload(wallet, chain.accounts[2])) == PREFIX + "signature"


async def test_B08_a_wallet_that_only_seems_to_agree_is_refused_by_the_simulation(chain: EvmDevnet) -> None:
    wallet = "0x" + "ac" * 20
    chain.set_code(wallet, "0x63" + "1626ba7e" + "60e01b5f5260205ff3")  # says yes to everything, and has no money
    assert await reason_of(chain, contract_payload(wallet, chain.accounts[2])) == (
        "invalid_exact_evm_insufficient_balance"
    )


async def test_B08_the_calls_have_a_gas_cap(chain: EvmDevnet) -> None:
    wallet = chain.deploy_erc1271_wallet(chain.accounts[2].address)
    seen: list[int] = []

    def note(params: list[dict[str, str]]) -> bool:
        seen.append(int(params[0].get("gas", "0x0"), 16))
        return False

    async with faulty_rpc(chain.rpc_url) as node, seller(chain, rpc=node.url) as shop:
        node.faults["eth_call"] = Fault(when=note)
        with pytest.raises(PaymentRefused):
            await shop.rail.verify(shop.authorize(contract_payload(wallet, chain.accounts[2])), shop.offer)
    assert seen[:2] == [250_000, 300_000]


async def test_B08_code_is_not_asked_for_again_at_once(chain: EvmDevnet) -> None:
    async with faulty_rpc(chain.rpc_url) as node, seller(chain, rpc=node.url) as shop:
        node.seen.clear()
        for _ in range(3):
            junk = signed_payload(chain.accounts[2], payer=chain.accounts[1].address)
            with pytest.raises(PaymentRefused):
                await shop.rail.verify(shop.authorize(junk), shop.offer)
        assert dict(node.seen) == {"eth_getCode": 1}


async def test_B04_another_keys_signature_for_an_account_without_code(chain: EvmDevnet) -> None:
    junk = signed_payload(chain.accounts[2], payer=chain.accounts[1].address)
    assert await reason_of(chain, junk) == PREFIX + "signature"


async def test_a_long_signature_for_an_account_without_code(chain: EvmDevnet) -> None:
    long = contract_payload(chain.accounts[1].address, chain.accounts[1], signature=b"\x01" * 97)
    assert await reason_of(chain, long) == PREFIX + "undeployed_smart_wallet"


async def test_B09_any_factory_is_refused_before_anything_is_asked(chain: EvmDevnet) -> None:
    async with faulty_rpc(chain.rpc_url) as node, seller(chain, rpc=node.url) as shop:
        node.seen.clear()
        for factory in (USDC.address, "0x" + "00" * 20, chain.accounts[0].address):
            trick = contract_payload("0x" + "ad" * 20, chain.accounts[2], signature=wrapped(b"\x01" * 65, factory))
            with pytest.raises(PaymentRefused, match="eip6492_factory_not_allowed"):
                await shop.rail.verify(shop.authorize(trick), shop.offer)
        broken = contract_payload("0x" + "ad" * 20, chain.accounts[2], signature=b"\xff" * 40 + ERC6492_SUFFIX)
        with pytest.raises(PaymentRefused, match=PREFIX + "signature"):
            await shop.rail.verify(shop.authorize(broken), shop.offer)
        assert not node.seen


async def test_B09_a_listed_factory_never_deploys_but_a_deployed_wallet_is_read(chain: EvmDevnet) -> None:
    owner, factory = chain.accounts[2], "0x" + "fa" * 20
    wallet = chain.deploy_erc1271_wallet(owner.address)
    chain.mint(wallet, PRICE)
    async with seller(chain, erc6492_factories=[factory.upper().replace("X", "x")]) as shop:
        bare = contract_payload(wallet, owner)
        inner = bytes.fromhex(bare["signature"][2:])
        await shop.settle(shop.authorize({**bare, "signature": "0x" + wrapped(inner, factory).hex()}))
        assert shop.received() == PRICE
        undeployed = contract_payload("0x" + "ad" * 20, owner, signature=wrapped(inner, factory))
        with pytest.raises(PaymentRefused, match="undeployed_smart_wallet"):
            await shop.rail.verify(shop.authorize(undeployed), shop.offer)


async def test_B10_a_wrapper_for_a_precompile_is_refused_offline(chain: EvmDevnet) -> None:
    trick = contract_payload("0x" + "00" * 19 + "04", chain.accounts[2], signature=wrapped(b"\x01" * 65, USDC.address))
    async with seller(chain, erc6492_factories=[USDC.address]) as shop:
        with pytest.raises(PaymentRefused, match="authorization_from"):
            shop.authorize(trick)


async def test_a_key_whose_account_carries_code_is_decided_by_the_token(chain: EvmDevnet) -> None:
    """EIP-7702: to the token that account is a contract, and its key's signature may be no good."""
    chain.set_code(chain.accounts[1].address, "0x5f5ffd")
    assert await reason_of(chain) == PREFIX + "signature"


@pytest.mark.parametrize("who", ["payer", "payee"])
async def test_B12_a_blacklisted_party_is_seen_before_sending(chain: EvmDevnet, who: str) -> None:
    party = chain.accounts[1].address if who == "payer" else PAY_TO
    chain.send_as_minter("blacklist(address)", party)
    assert await reason_of(chain) == "invalid_exact_evm_transaction_simulation_failed"


async def test_B12_a_paused_token_is_seen_before_sending(chain: EvmDevnet) -> None:
    chain.send_as_minter("pause()")
    assert await reason_of(chain) == "invalid_exact_evm_transaction_simulation_failed"


async def test_the_chains_clock_decides_too(chain: EvmDevnet) -> None:
    chain.rpc("evm_increaseTime", 3600)
    chain.mine()
    assert await reason_of(chain) == PREFIX + "authorization_valid_before"


@pytest.mark.parametrize(
    "fault",
    [
        Fault(html=502),
        Fault(html=200),
        Fault(text="{}"),
        Fault(text="null"),
        Fault(text="[" * 100_000),
        Fault(drop=True),
        Fault(delay=2),
        Fault(result="0xzz"),
        Fault(result={"a": 1}),
        Fault(error={"code": -32005, "message": "rate limit at http://node.internal"}),
        Fault(error={"code": -32601, "message": "the method eth_call is not available"}),
        Fault(error="broken"),  # type: ignore[arg-type]  # a node that lies about the form, too
    ],
    ids=["502", "html", "empty", "null", "deep", "drop", "slow", "no-hex", "object", "rate", "method", "form"],
)
async def test_I01_a_node_in_trouble_is_503_and_tells_nothing(chain: EvmDevnet, fault: Fault) -> None:
    async with faulty_rpc(chain.rpc_url) as node, seller(chain, rpc=node.url, rpc_seconds=0.5) as shop:
        node.faults["eth_call"] = fault
        with pytest.raises(RailUnavailable) as refused:
            await shop.rail.verify(shop.authorize(), shop.offer)
        error = refused.value
        assert (error.status, error.money) == (503, "no")
        told = " ".join((str(error), error.reason, error.detail, str(error.__cause__)))
        assert not any(secret in told for secret in ("127.0.0.1", "http", "node.internal", "SECRET"))


async def test_I01_a_node_that_is_gone_is_503(chain: EvmDevnet) -> None:
    async with faulty_rpc(chain.rpc_url) as node:
        gone = node.url
    async with seller(chain, rpc=gone) as shop:
        with pytest.raises(RailUnavailable):
            await shop.rail.verify(shop.authorize(), shop.offer)
        with pytest.raises(RailUnavailable):
            await shop.rail.ready()
        with pytest.raises(RailUnavailable):
            await shop.prepare(shop.authorize())
        assert shop.nonces.taken == {}
