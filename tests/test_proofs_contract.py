"""Wallet proofs by contracts (EIP-1271): a real node, a real wallet contract, asked through the rail."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from tests.support.evm_payments import PAY_TO, seller
from tests.support.faulty_rpc import Fault, faulty_rpc
from tests.support.wallet_proofs import BASE, URL, Wallet, evm_wallet, header, katana, proofs, standard, venice
from x402kit.devnet import EvmDevnet
from x402kit.devnet.contracts import answering_code
from x402kit.errors import ProofRefused, RailUnavailable
from x402kit.networks import Base, EvmOptions, EvmRail
from x402kit.networks.evm import ERC6492_SUFFIX
from x402kit.networks.evm_abi import address_word, word
from x402kit.networks.port import ProvesWallets
from x402kit.paywall.proofs import Proofs, wallets_of

YES = "0x63" + "1626ba7e" + "60e01b5f5260205ff3"
NO = "0x5f5ffd"


def owned_by(chain: EvmDevnet, number: int, address: str) -> Wallet:
    return evm_wallet(bytes.fromhex(chain.accounts[number].private_key[2:]), address)


@asynccontextmanager
async def asking(chain: EvmDevnet, **options: Any) -> AsyncGenerator[Proofs]:
    """A verifier that asks the chain through the rail."""
    async with seller(chain, **options) as shop:
        yield proofs(time.time, contract_wallets=wallets_of([shop.rail]))


def all_dialects(wallet: Wallet, here: Proofs) -> list[bytes]:
    now = int(time.time())
    made = (standard(wallet, here.challenge(now, URL)["info"]), venice(wallet, now), katana(wallet, now))
    return [header(fields) for fields in made]


async def test_F07_a_wallet_contract_proves_itself_by_its_owner(chain: EvmDevnet) -> None:
    wallet = owned_by(chain, 2, chain.deploy_erc1271_wallet(chain.accounts[2].address))
    thief = owned_by(chain, 3, wallet.address)
    async with asking(chain) as here:
        for raw in all_dialects(wallet, here):
            assert (await here.verify(raw)).owner == f"{BASE}:{wallet.address.lower()}"
        for raw in all_dialects(thief, here):
            with pytest.raises(ProofRefused, match="invalid_siwx_signature"):
                await here.verify(raw)


async def test_F07_an_owner_that_changed_is_seen_when_it_must_be_fresh(chain: EvmDevnet) -> None:
    wallet = owned_by(chain, 2, chain.deploy_erc1271_wallet(chain.accounts[2].address))
    async with faulty_rpc(chain.rpc_url) as node, asking(chain, rpc=node.url) as here:
        raw = header(katana(wallet, int(time.time())))
        proven = await here.verify(raw)
        node.seen.clear()
        chain.set_code(wallet.address, NO)
        assert await here.verify(raw) == proven  # remembered, for half a minute
        assert not node.seen
        with pytest.raises(ProofRefused):
            await here.verify(raw, fresh=True)
        with pytest.raises(ProofRefused):
            await here.verify(raw)


async def test_F07_a_node_that_is_down_is_no_refusal(chain: EvmDevnet) -> None:
    wallet = owned_by(chain, 2, chain.deploy_erc1271_wallet(chain.accounts[2].address))
    async with faulty_rpc(chain.rpc_url) as node, asking(chain, rpc=node.url) as here:
        raw = header(katana(wallet, int(time.time())))
        node.faults["eth_call"] = Fault(html=502)
        with pytest.raises(RailUnavailable) as e:
            await here.verify(raw)
        assert "SECRET" not in f"{e.value.reason}{e.value.hint}"
        node.faults.clear()
        await here.verify(raw)


async def test_B08_contracts_that_burn_gas_or_answer_otherwise(chain: EvmDevnet) -> None:
    address = "0x" + "ab" * 20
    async with asking(chain) as here:
        for code in (
            "0x5b5f56",
            NO,
            "0x61ffff5ff3",
            "0x5f5ff3",
            answering_code({"isValidSignature(bytes32,bytes)": [1]}),
        ):
            chain.set_code(address, code)
            with pytest.raises(ProofRefused):
                await here.verify(header(katana(owned_by(chain, 2, address), int(time.time()))))


async def test_B10_no_precompile_and_no_empty_account_is_a_wallet(chain: EvmDevnet) -> None:
    async with faulty_rpc(chain.rpc_url) as node, asking(chain, rpc=node.url) as here:
        node.seen.clear()
        for address in ("0x" + "00" * 19 + "04", "0x" + "00" * 20):
            with pytest.raises(ProofRefused):
                await here.verify(header(katana(owned_by(chain, 2, address), int(time.time()))))
        assert not node.seen
        with pytest.raises(ProofRefused):
            await here.verify(header(katana(owned_by(chain, 2, "0x" + "ac" * 20), int(time.time()))))
        assert dict(node.seen) == {"eth_getCode": 1}


def wrapped(inner: str, factory: str) -> str:
    """ERC-6492, for a wallet that may not be there yet."""
    made = bytes.fromhex(inner[2:])
    head = address_word(factory) + word(96) + word(128) + word(0) + word(len(made))
    return "0x" + (head + made + bytes(-len(made) % 32) + ERC6492_SUFFIX).hex()


async def test_B09_a_wrapped_signature_is_read_only_for_a_listed_factory(chain: EvmDevnet) -> None:
    plain = owned_by(chain, 2, chain.deploy_erc1271_wallet(chain.accounts[2].address))
    factory = "0x" + "fa" * 20
    wallet = Wallet(BASE, plain.address, lambda text: wrapped(plain.sign(text), factory))
    broken = Wallet(BASE, plain.address, lambda text: "0x" + (b"\xff" * 40 + ERC6492_SUFFIX).hex())
    async with asking(chain) as here:
        for each in (wallet, broken):
            with pytest.raises(ProofRefused):
                await here.verify(header(katana(each, int(time.time()))))
    async with asking(chain, erc6492_factories=[factory]) as here:
        assert (await here.verify(header(katana(wallet, int(time.time()))))).address == plain.address.lower()


async def test_what_rails_can_ask(chain: EvmDevnet) -> None:
    blind = EvmRail(BASE, pay_to=PAY_TO)
    off = EvmRail(BASE, pay_to=PAY_TO, rpc=chain.rpc_url, options=EvmOptions(contract_wallets=False))
    beneath = Base(pay_to=PAY_TO, facilitator="https://facilitator.example", rpc=chain.rpc_url)
    rails = (blind, off, beneath)
    try:
        assert all(isinstance(rail, ProvesWallets) for rail in rails)
        assert wallets_of([blind, off]) == {}
        assert list(wallets_of(rails)) == [BASE]
    finally:
        for rail in rails:
            await rail.close()
