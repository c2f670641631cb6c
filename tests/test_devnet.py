"""The local chain is the real thing where it matters: Circle's rules, Base's address, and nothing left behind."""

from __future__ import annotations

import http.client
import json
import os
import secrets
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from eth_account import Account

from x402kit.devnet import ChainRefused, DevnetError, EvmAccount, EvmDevnet, ToolMissing, packages
from x402kit.devnet.contracts import encode, selector
from x402kit.devnet.process import Server

BASE_USDC = "0x833589fCD6eDb6E08f4c7C32D4f71b54bdA02913"
BASE_SEPARATOR = "0x02fa7265e7c5d81118673727957699e4d68f74cd74b7db77da710fe8a2c7834f"
BASE_SEPOLIA_SEPARATOR = "0x71f17a3b2ff373b803d70a5a07c046c1a2bc8e89c09ef722fcb047abe94c9818"
BYTES_VARIANT = "transferWithAuthorization(address,address,uint256,uint256,uint256,bytes32,bytes)"
FIELDS = ("from", "to", "value", "validAfter", "validBefore", "nonce")
TYPES = {
    "TransferWithAuthorization": [
        {"name": name, "type": kind}
        for name, kind in zip(FIELDS, ("address", "address", "uint256", "uint256", "uint256", "bytes32"), strict=True)
    ]
}


def call(chain: EvmDevnet, data: str, to: str | None = None) -> bytes:
    answer: str = chain.rpc("eth_call", {"to": to or chain.usdc, "data": data}, "latest")
    return bytes.fromhex(answer[2:])


def text(word: bytes) -> str:
    length = int.from_bytes(word[32:64], "big")
    return word[64 : 64 + length].decode()


def words(answer: bytes) -> list[int]:
    return [int.from_bytes(answer[i : i + 32], "big", signed=True) for i in range(0, len(answer), 32)]


def authorization(chain: EvmDevnet, owner: EvmAccount, to: str, value: int, *, payer: str | None = None) -> str:
    """A transfer's calldata, signed by ``owner`` for its own address or for the wallet contract it owns."""
    nonce, payer, until = secrets.token_bytes(32), payer or owner.address, int(time.time()) + 600
    domain = {"name": "USD Coin", "version": "2", "chainId": chain.chain_id, "verifyingContract": chain.usdc}
    message = dict(zip(FIELDS, (payer, to, value, 0, until, nonce), strict=True))
    signed = Account.sign_typed_data(owner.private_key, domain, TYPES, message)
    return encode(BYTES_VARIANT, payer, to, value, 0, until, nonce, bytes(signed.signature))


def settle(chain: EvmDevnet, data: str) -> dict[str, Any]:
    """Sends calldata to the token from the settlement wallet, signed outside the node; gives the receipt."""
    seller = chain.accounts[0]
    transaction = {
        "chainId": chain.chain_id,
        "nonce": int(chain.rpc("eth_getTransactionCount", seller.address, "latest"), 16),
        "to": chain.usdc,
        "data": data,
        "gas": 200_000,
        "maxFeePerGas": 10**10,
        "maxPriorityFeePerGas": 1,
    }
    raw = Account.sign_transaction(transaction, seller.private_key).raw_transaction
    receipt: dict[str, Any] = chain.rpc("eth_sendRawTransactionSync", "0x" + bytes(raw).hex())
    return receipt


def answers(rpc_url: str) -> bool:
    connection = http.client.HTTPConnection(rpc_url.removeprefix("http://"), timeout=1)
    try:
        connection.request("POST", "/", json.dumps({"jsonrpc": "2.0", "id": 1, "method": "eth_chainId"}))
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


def test_token_is_usdc_at_bases_address(devnet: EvmDevnet) -> None:
    assert devnet.usdc == BASE_USDC
    assert devnet.rpc("eth_chainId") == hex(8453)
    assert text(call(devnet, encode("name()"))) == "USD Coin"
    assert text(call(devnet, encode("symbol()"))) == "USDC"
    assert text(call(devnet, encode("version()"))) == "2"
    assert words(call(devnet, encode("decimals()"))) == [6]
    assert "0x" + call(devnet, encode("DOMAIN_SEPARATOR()")).hex() == BASE_SEPARATOR


def test_base_sepolia_has_its_own_name_address_and_domain() -> None:
    with EvmDevnet(chain_id=84532) as sepolia:
        assert sepolia.usdc == "0x036CbD53842c5426634e7929541eC2318f3dCF7e"
        assert text(call(sepolia, encode("name()"))) == "USDC"
        assert "0x" + call(sepolia, encode("DOMAIN_SEPARATOR()")).hex() == BASE_SEPOLIA_SEPARATOR


def test_a_chain_without_a_known_token_is_refused() -> None:
    with pytest.raises(DevnetError, match="999999"):
        EvmDevnet(chain_id=999_999)


def test_accounts_are_funded_and_their_keys_fit(devnet: EvmDevnet) -> None:
    assert [devnet.balance_of(account.address) for account in devnet.accounts] == [0, 10**9, *[10**7] * 4]
    for account in devnet.accounts:
        assert Account.from_key(account.private_key).address == account.address
        assert int(devnet.rpc("eth_getBalance", account.address, "latest"), 16) > 10**18


def test_description_is_the_contract_of_the_command(devnet: EvmDevnet) -> None:
    description = json.loads(json.dumps(devnet.describe()))
    assert set(description) == {"evm"}
    assert set(description["evm"]) == {"rpc_url", "chain_id", "usdc", "accounts"}
    assert set(description["evm"]["accounts"][0]) == {"address", "private_key"}
    assert description["evm"]["rpc_url"].startswith("http://127.0.0.1:")


def test_authorization_moves_money_once(chain: EvmDevnet) -> None:
    payer, payee = chain.accounts[1], chain.accounts[0].address
    data = authorization(chain, payer, payee, 10_000)
    receipt = settle(chain, data)
    assert receipt["status"] == "0x1"
    assert 70_000 < int(receipt["gasUsed"], 16) < 110_000
    assert (chain.balance_of(payer.address), chain.balance_of(payee)) == (10**9 - 10_000, 10_000)
    with pytest.raises(ChainRefused, match="authorization is used or canceled") as refused:
        call(chain, data)
    assert refused.value.method == "eth_call"
    assert settle(chain, data)["status"] == "0x0"
    assert chain.balance_of(payee) == 10_000


def test_tokens_own_rules_apply(chain: EvmDevnet) -> None:
    payer, payee = chain.accounts[1], chain.accounts[0].address
    data = authorization(chain, payer, payee, 1)
    chain.send_as_minter("blacklist(address)", payer.address)
    with pytest.raises(ChainRefused, match="Blacklistable: account is blacklisted"):
        call(chain, data)
    chain.send_as_minter("unBlacklist(address)", payer.address)
    chain.send_as_minter("pause()")
    with pytest.raises(ChainRefused, match="Pausable: paused"):
        call(chain, data)
    chain.send_as_minter("unpause()")
    with pytest.raises(ChainRefused, match="transfer amount exceeds balance"):
        call(chain, authorization(chain, payer, payee, 10**9 + 1))
    with pytest.raises(ChainRefused, match="invalid signature"):
        call(chain, authorization(chain, chain.accounts[2], payee, 1, payer=payer.address))


def test_wallet_contract_pays_with_its_owners_signature(chain: EvmDevnet) -> None:
    owner, payee = chain.accounts[2], chain.accounts[0].address
    wallet = chain.deploy_erc1271_wallet(owner.address)
    chain.mint(wallet, 500)
    assert settle(chain, authorization(chain, owner, payee, 7, payer=wallet))["status"] == "0x1"
    assert (chain.balance_of(wallet), chain.balance_of(payee)) == (493, 7)
    with pytest.raises(ChainRefused, match="invalid signature"):
        call(chain, authorization(chain, chain.accounts[3], payee, 7, payer=wallet))


def test_a_call_that_the_token_refuses_raises(chain: EvmDevnet) -> None:
    with pytest.raises(DevnetError, match="zero address"):
        chain.mint("0x" + "00" * 20, 1)


def test_oracle_and_feed_answer_what_was_set(chain: EvmDevnet) -> None:
    oracle = chain.set_l1_fee(123_456_789)
    assert words(call(chain, encode("getL1Fee(bytes)", b"\x02" * 300), oracle)) == [123_456_789]
    with pytest.raises(ChainRefused, match="revert"):
        call(chain, encode("decimals()"), oracle)
    feed = chain.set_price_feed(-5, updated_at=1_700_000_000)
    assert words(call(chain, encode("latestRoundData()"), feed)) == [1, -5, 1_700_000_000, 1_700_000_000, 1]
    assert words(call(chain, encode("decimals()"), feed)) == [8]
    assert selector("latestRoundData()").hex() == "feaf968c"


def test_mining_waits_when_told_and_a_snapshot_brings_everything_back(chain: EvmDevnet) -> None:
    before = chain.snapshot()
    chain.set_automine(False)
    payee = chain.accounts[0].address
    data = authorization(chain, chain.accounts[1], payee, 3)
    sent = chain.rpc("eth_sendTransaction", {"from": payee, "to": chain.usdc, "data": data, "gas": "0x30d40"})
    assert chain.rpc("eth_getTransactionReceipt", sent) is None
    chain.mine()
    assert chain.rpc("eth_getTransactionReceipt", sent)["status"] == "0x1"
    assert chain.balance_of(payee) == 3
    chain.revert(before)
    assert chain.balance_of(payee) == 0
    with pytest.raises(DevnetError, match="gone"):
        chain.revert(before)


@pytest.mark.parametrize("round_", [1, 2])
def test_each_test_finds_the_chain_as_the_first_did(chain: EvmDevnet, round_: int) -> None:
    assert chain.balance_of(chain.accounts[5].address) == 10**7
    chain.mint(chain.accounts[5].address, round_)
    chain.set_automine(False)
    chain.rpc("evm_increaseTime", 7200)


def test_two_chains_run_side_by_side(devnet: EvmDevnet) -> None:
    with EvmDevnet() as other:
        assert other.rpc_url != devnet.rpc_url
        other.mint(other.accounts[0].address, 5)
        assert other.balance_of(other.accounts[0].address) == 5
        assert devnet.balance_of(devnet.accounts[0].address) == 0


def test_start_is_quick_and_stop_leaves_nothing() -> None:
    started = time.monotonic()
    chain = EvmDevnet()
    assert time.monotonic() - started < 20  # 0.06 s on an idle machine
    assert answers(chain.rpc_url)
    chain.stop()
    chain.stop()
    assert not answers(chain.rpc_url)
    with pytest.raises(ProcessLookupError):
        os.kill(chain.pid, 0)
    with pytest.raises(DevnetError, match="does not answer"):
        chain.balance_of(chain.accounts[0].address)


def test_chain_ends_when_its_process_is_killed() -> None:
    script = "from x402kit.devnet import EvmDevnet; print(EvmDevnet().rpc_url, flush=True); input()"
    with subprocess.Popen(
        (sys.executable, "-c", script), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        rpc_url = parent.stdout.readline().strip()
        assert answers(rpc_url)
        parent.send_signal(signal.SIGKILL)
        parent.wait()
        deadline = time.monotonic() + 5
        while answers(rpc_url) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert not answers(rpc_url)


def test_without_npm_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("X402KIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with pytest.raises(ToolMissing, match=r"Node\.js 20"):
        packages.anvil()


def test_a_failed_fetch_leaves_no_half_installed_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    npm = tmp_path / "npm"
    npm.write_text("#!/bin/sh\nmkdir -p node_modules; echo 'no network' >&2; exit 1\n")
    npm.chmod(0o755)
    monkeypatch.setenv("X402KIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    with pytest.raises(ToolMissing, match="no network"):
        packages.token_artifacts()
    assert list((tmp_path / "cache").iterdir()) == []


def test_packages_are_fetched_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    npm = tmp_path / "npm"
    binary = "node_modules/@foundry-rs/anvil-linux-amd64/bin/anvil"
    runtime = "node_modules/@solana/surfpool-linux-x64-gnu"
    npm.write_text(
        f'#!/bin/sh\necho "$@" >> {tmp_path}/calls; test -f package-lock.json || exit 1\n'
        f"mkdir -p {os.path.dirname(binary)} {runtime}; touch {binary}\n"
    )
    npm.chmod(0o755)
    monkeypatch.setenv("X402KIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    assert packages.installed() == packages.installed()
    assert packages.anvil().is_relative_to(tmp_path / "cache")
    (call_,) = (tmp_path / "calls").read_text().splitlines()
    assert call_.startswith("ci --ignore-scripts ")
    assert [entry.name.startswith("devnet-") for entry in (tmp_path / "cache").iterdir()] == [True]


def test_a_server_that_ends_at_start_shows_what_it_said() -> None:
    with pytest.raises(DevnetError, match="port in use"):
        Server(("sh", "-c", "echo port in use; exit 1"), ready="Listening")


@pytest.mark.parametrize(
    ("signature", "argument"), [("f(bytes32)", b"short"), ("f(string)", 1), ("f(bool)", "yes"), ("f()", 1)]
)
def test_arguments_that_do_not_fit_are_refused(signature: str, argument: str | bytes | int) -> None:
    with pytest.raises(ValueError, match=r"is no|has no length|zip"):
        encode(signature, argument)
