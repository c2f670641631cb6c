"""The local Solana: real accounts, USDC at its mainnet address, and nothing left behind."""

from __future__ import annotations

import os
import time

import pytest
from solders.keypair import Keypair

from x402kit.devnet import ChainRefused, SvmDevnet

USDC = "EPjFWdd5AufqSSqeM2qN1xzybapC8G4wEGGkZwyTDt1v"


def test_the_devnet_has_usdc_and_funded_accounts() -> None:
    with SvmDevnet() as chain:
        pid = chain.pid
        said = chain.describe()["svm"]
        assert set(said) == {"rpc_url", "network", "usdc", "accounts"}
        assert (said["usdc"], said["network"]) == (USDC, "solana:5eykt4UsFv8P8NJdTREpY1vzqKqZKvdp")
        for account in said["accounts"]:
            assert str(Keypair.from_base58_string(account["secret_key"]).pubkey()) == account["address"]
        seller, payer = (account.address for account in chain.accounts[:2])
        assert (chain.balance_of(seller), chain.balance_of(payer)) == (0, 1_000_000_000)
        assert chain.lamports_of(seller) == 100 * 10**9
        assert chain.lamports_of(payer) == 0
        mint = chain.rpc("getAccountInfo", USDC, {"encoding": "jsonParsed"})["value"]["data"]["parsed"]["info"]
        assert (mint["decimals"], mint["isInitialized"], mint["freezeAuthority"]) == (6, True, None)
        with pytest.raises(ChainRefused, match="-32601"):
            chain.rpc("surfnet_none")
        chain.advance(100)
        assert chain.rpc("getEpochInfo")["absoluteSlot"] >= 100
    assert not chain.running
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_it_goes_on_after_more_blocks_than_its_queue_holds() -> None:
    """The runtime tells of every block in a queue of a thousand places, and waits where nobody takes them out."""
    with SvmDevnet(slot_ms=2) as chain:
        deadline = time.monotonic() + 30
        while (slot := chain.rpc("getSlot")) < 2500 and time.monotonic() < deadline:
            time.sleep(0.05)
        assert slot >= 2500
