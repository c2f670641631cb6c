"""The settlement wallet: who signs, what it can pay for, and what it never shows."""

from __future__ import annotations

import asyncio
import secrets
import time
from typing import Any

import pytest
from eth_account import Account
from hypothesis import given
from hypothesis import strategies as st

from tests.support.evm_payments import USDC, seller
from tests.support.faulty_rpc import Fault, faulty_rpc
from tests.support.nonces import MemoryNonces
from x402kit.devnet import EvmDevnet
from x402kit.errors import ConfigError, RailUnavailable
from x402kit.model import Intent
from x402kit.networks.evm import ERC6492_SUFFIX
from x402kit.networks.evm_abi import Transaction, parse_transaction, revert_words, unwrap_6492
from x402kit.networks.evm_wallet import Wallet


async def test_any_signer_will_do(chain: EvmDevnet) -> None:
    account = Account.from_key(chain.accounts[0].private_key)

    class Remote:
        address = account.address.lower()

        async def sign_transaction(self, transaction: dict[str, Any]) -> Any:
            await asyncio.sleep(0)
            return {"raw_transaction": "0x" + bytes(account.sign_transaction(transaction).raw_transaction).hex()}

    class Device:
        address = account.address

        def sign_transaction(self, transaction: dict[str, Any]) -> bytes:
            time.sleep(0.01)
            return bytes(account.sign_transaction(transaction).raw_transaction)

    nonces = MemoryNonces()
    for signer in (account, Remote(), Device()):
        async with seller(chain, wallet=Wallet(signer=signer), nonces=nonces) as shop:
            await shop.rail.ready()
            assert (await shop.settle(shop.authorize()))[1].state == "settled"


@pytest.mark.parametrize("field", ["nonce", "to", "data", "maxFeePerGas", "chainId"])
async def test_a_signer_that_signs_something_else_is_not_used(chain: EvmDevnet, field: str) -> None:
    account = Account.from_key(chain.accounts[0].private_key)
    wrong = {"nonce": 5, "to": account.address, "data": "0x01", "maxFeePerGas": 10**11, "chainId": 1}

    class Liar:
        address = account.address

        def sign_transaction(self, transaction: dict[str, Any]) -> Any:
            return account.sign_transaction({**transaction, field: wrong[field]})

    async with seller(chain, wallet=Wallet(signer=Liar())) as shop:
        with pytest.raises(RailUnavailable):
            await shop.prepare(shop.authorize())


async def test_our_transactions_are_eth_accounts(chain: EvmDevnet) -> None:
    account = Account.from_key(chain.accounts[0].private_key)
    for data, value in ((b"", 0), (b"\x01" * 55, 1), (b"\x01" * 300, 2**70), (b"\x7f", 127), (b"\x80", 128)):
        made = Transaction(8453, 0, 1, 2**40, 21_000, USDC.address, data, value)
        raw = await Wallet(chain.accounts[0].private_key).sign(made)
        assert raw == await Wallet(signer=account).sign(made)
        assert parse_transaction(raw)[0].data == data


@pytest.mark.parametrize("key", ["", "0x", "0x" + "00" * 32, "0x" + "ff" * 32, "0x12", b"short", "g" * 64])
def test_a_bad_key_is_a_config_error_that_does_not_show_it(key: str | bytes) -> None:
    with pytest.raises(ConfigError) as refused:
        Wallet(key)
    assert str(refused.value) == "key is not a private key: 32 bytes, or 64 hex digits"


def test_a_wallet_does_not_show_its_key() -> None:
    key = "0x" + secrets.token_hex(32)
    assert key[2:] not in repr(Wallet(key))


async def test_B16_an_empty_wallet_is_503_before_anything(
    chain: EvmDevnet, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("x402kit.networks.ready._BAD_SECONDS", 0.1)
    chain.rpc("anvil_setBalance", chain.accounts[0].address, hex(10**13))
    async with seller(chain) as shop:
        with pytest.raises(RailUnavailable, match="payment-unavailable") as refused:
            await shop.rail.ready()
        assert refused.value.detail == f"the settlement wallet {chain.accounts[0].address} is short of gas money"
        with pytest.raises(RailUnavailable):
            await shop.rail.ready()
        assert [record.getMessage() for record in caplog.records if "ALERT" in record.getMessage()] == [
            f"ALERT: no settlement on eip155:8453: {refused.value.detail}"
        ]
        chain.rpc("anvil_setBalance", chain.accounts[0].address, hex(10**18))
        await asyncio.sleep(0.15)
        await shop.rail.ready()


async def test_B16_a_fee_above_the_cap_is_503(chain: EvmDevnet) -> None:
    async with seller(chain, max_fee_per_gas=10**8) as shop:
        with pytest.raises(RailUnavailable) as refused:
            await shop.rail.ready()
        assert refused.value.detail == "gas price above max_fee_per_gas"
        with pytest.raises(RailUnavailable):
            await shop.prepare(shop.authorize())
        assert shop.nonces.taken == {}


async def test_B16_fees_stay_under_the_cap(chain: EvmDevnet) -> None:
    async with seller(chain, max_fee_per_gas=4 * 10**8) as shop:
        await shop.rail.ready()
        intent, _ = await shop.prepare(shop.authorize())
        sent, _ = parse_transaction(intent.blob)
        assert sent.tip <= sent.max_fee == 4 * 10**8
        assert sent.gas == 150_000


async def test_B16_many_askers_make_one_look(chain: EvmDevnet) -> None:
    async with faulty_rpc(chain.rpc_url) as node, seller(chain, rpc=node.url) as shop:
        node.seen.clear()
        await asyncio.gather(*(shop.rail.ready() for _ in range(50)))
        await shop.rail.ready()
        assert node.seen["eth_getBalance"] == 1
        assert sum(node.seen.values()) == 3


async def test_B15_a_signer_that_fails_gives_the_nonce_back(chain: EvmDevnet) -> None:
    class Broken:
        address = chain.accounts[0].address

        def sign_transaction(self, transaction: dict[str, Any]) -> Any:
            raise OSError("the device at /dev/secret is gone")

    async with seller(chain, wallet=Wallet(signer=Broken())) as shop:
        with pytest.raises(RailUnavailable) as refused:
            await shop.prepare(shop.authorize())
        assert "secret" not in refused.value.detail
        assert shop.nonces.freed == [0]


async def test_a_node_that_advises_no_tip_will_do(chain: EvmDevnet) -> None:
    async with faulty_rpc(chain.rpc_url) as node, seller(chain, rpc=node.url) as shop:
        node.faults["eth_maxPriorityFeePerGas"] = Fault(error={"code": -32601, "message": "method not found"})
        await shop.rail.ready()
        assert (await shop.settle(shop.authorize()))[1].state == "settled"


async def test_an_intent_that_took_no_nonce_gives_none_back(chain: EvmDevnet) -> None:
    async with seller(chain) as shop:
        await shop.rail.discard(Intent("0x", b""), shop.nonces)
        assert shop.nonces.freed == []


@given(st.binary(max_size=300) | st.binary(max_size=300).map(lambda junk: b"\x02\xf8" + junk))
def test_any_bytes_are_a_transaction_or_a_value_error(junk: bytes) -> None:
    with pytest.raises(ValueError, match="transaction"):
        parse_transaction(junk)


@given(st.binary(max_size=300))
def test_B09_any_bytes_are_a_wrapper_or_a_value_error(junk: bytes) -> None:
    for made in (junk, junk + ERC6492_SUFFIX):
        try:
            factory, inner = unwrap_6492(made)
        except ValueError:
            continue
        assert len(factory) == 42
        assert inner in made


def test_reverted_words_that_we_do_not_know_have_no_reason() -> None:
    assert revert_words("pausable: paused") == ""
    assert revert_words("fiattokenv2: invalid signature") == "invalid_exact_evm_payload_signature"
