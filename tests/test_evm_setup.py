"""Making and starting an EVM rail: what is refused, when, and what is not loaded."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest

from tests.support.evm_payments import NETWORK, PAY_TO, USDC, offer_for, seller
from tests.support.faulty_rpc import Fault, faulty_rpc
from x402kit import networks
from x402kit.devnet import EvmDevnet
from x402kit.devnet.evm import ACCOUNTS
from x402kit.errors import ConfigError, RailUnavailable
from x402kit.money import Asset
from x402kit.networks import Base, BaseSepolia, Evm, EvmOptions, EvmRail
from x402kit.networks.assets import DEFAULTS
from x402kit.networks.evm_wallet import Wallet

KEY = ACCOUNTS[0].private_key
RPC = "http://127.0.0.1:1/"


def test_making_a_rail_does_no_io_and_loads_no_package() -> None:
    script = (
        "import sys\n"
        "from x402kit.networks import Base, GasPolicy, FixedPrice\n"
        f"Base(pay_to='{PAY_TO}', key='{KEY}', rpc='{RPC}', gas=GasPolicy(FixedPrice('1')))\n"
        "names = ('aiohttp', 'coincurve', 'sha3', 'web3', 'eth_account', 'httpx', 'rlp')\n"
        "print([name for name in names if name in sys.modules])"
    )
    done = subprocess.run((sys.executable, "-c", script), capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_factories_know_their_chain() -> None:
    for rail, network in (
        (Base(pay_to=PAY_TO, key=KEY, rpc=RPC), "eip155:8453"),
        (BaseSepolia(pay_to=PAY_TO, key=KEY, rpc=RPC), "eip155:84532"),
        (Evm("eip155:43114", pay_to=PAY_TO, key=KEY, rpc=RPC), "eip155:43114"),
        (Base(pay_to=PAY_TO, key=bytes.fromhex(KEY[2:]), rpc=[RPC, RPC], network="eip155:84532"), "eip155:84532"),
    ):
        assert (rail.scheme, rail.network, rail.asset, rail.pay_to) == ("exact", network, DEFAULTS[network], PAY_TO)
        assert rail.extra() == {"name": DEFAULTS[network].name, "version": "2"}
        assert (rail.confirmations, rail.surcharge()) == (0, 0)


def test_a_facilitator_settles_instead_of_a_key() -> None:
    rail = Base(pay_to=PAY_TO, facilitator="https://facilitator.example/", confirmations=2)
    assert (rail.network, rail.asset, rail.confirmations) == ("eip155:8453", USDC, 2)


CUSTOM = Asset(NETWORK, "0x" + "aa" * 20, "EURC", 6, "EURC", "2")


@pytest.mark.parametrize(
    "wrong",
    [
        {"key": None},
        {"facilitator": "https://f.example/"},
        {"signer": object(), "key": None},
        {"rpc": None},
        {"rpc": "localhost:8545"},
        {"pay_to": "0x1234"},
        {"pay_to": PAY_TO.lower().replace("0x", "")},
        {"pay_to": "vitalik.eth"},
        {"network": "base"},
        {"network": "solana:5eykt4UsFv8P8NJdTREpY1vzqKqZKvdp"},
        {"network": "eip155:99999"},
        {"network": "eip155:08453"},
        {"asset": replace(CUSTOM, network="eip155:1")},
        {"asset": replace(CUSTOM, name="")},
        {"asset": replace(CUSTOM, address="0x12")},
        *({"confirmations": value} for value in (-1, "2", 1.5, True)),
        {"options": EvmOptions(quorum=2)},
        {"options": EvmOptions(quorum=0)},
    ],
    ids=lambda wrong: "-".join(f"{name}" for name in wrong),
)
def test_a_set_up_that_can_not_work_is_refused_at_once(wrong: dict[str, Any]) -> None:
    given: dict[str, Any] = {"network": NETWORK, "pay_to": PAY_TO, "key": KEY, "rpc": RPC, **wrong}
    with pytest.raises(ConfigError) as refused:
        Evm(given.pop("network"), **given)
    assert KEY[2:] not in str(refused.value)


def test_an_unknown_token_needs_the_whole_asset() -> None:
    rail = Evm(NETWORK, pay_to=PAY_TO, key=KEY, rpc=RPC, asset=CUSTOM)
    assert (rail.asset, rail.extra()) == (CUSTOM, {"name": "EURC", "version": "2"})


async def refusal(chain: EvmDevnet, *, rpc: str | None = None, **changes: Any) -> str:
    """Why ``start`` refuses, or an empty string."""
    given: dict[str, Any] = {"pay_to": PAY_TO, "wallet": Wallet(KEY), "rpc": rpc or chain.rpc_url, **changes}
    rail = EvmRail(given.pop("network", NETWORK), **given)
    try:
        await rail.start()
    except ConfigError as e:
        return str(e)
    finally:
        await rail.close()
    return ""


async def test_start_compares_the_set_up_with_the_chain(devnet: EvmDevnet) -> None:
    assert await refusal(devnet) == ""
    assert "eip155:84532" in await refusal(devnet, network="eip155:84532")
    assert "asset_not_deployed_contract" in await refusal(devnet, asset=CUSTOM)
    assert "EIP-712" in await refusal(devnet, asset=replace(USDC, name="USDC"))
    assert "EIP-712" in await refusal(devnet, asset=replace(USDC, version="1"))


async def test_start_refuses_a_token_without_eip3009(chain: EvmDevnet) -> None:
    for code in ("0x5f5ffd", "0x5f5ff3"):
        chain.set_code(CUSTOM.address, code)
        assert "invalid_exact_evm_eip3009_not_supported" in await refusal(chain, asset=CUSTOM)


async def test_L06_start_refuses_a_mistyped_address(devnet: EvmDevnet) -> None:
    wrong = PAY_TO[:-4] + PAY_TO[-4:].swapcase()
    assert "EIP-55" in await refusal(devnet, pay_to=wrong)
    assert await refusal(devnet, pay_to=PAY_TO.lower()) == ""
    assert "no account" in await refusal(devnet, pay_to="0x" + "00" * 19 + "01")
    assert "token's own" in await refusal(devnet, pay_to=USDC.address)


async def test_I01_a_node_that_is_down_at_start_is_compared_before_we_settle(
    chain: EvmDevnet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("x402kit.networks.ready._BAD_SECONDS", 0.1)
    async with faulty_rpc(chain.rpc_url) as node:
        node.faults["*"] = Fault(html=502)
        async with seller(chain, rpc=node.url) as shop:
            with pytest.raises(RailUnavailable):
                await shop.rail.ready()
            node.faults.clear()
            node.faults["eth_chainId"] = Fault(result="0x1")
            await asyncio.sleep(0.15)
            with pytest.raises(RailUnavailable) as refused:
                await shop.rail.ready()
            assert "eip155:1" in refused.value.detail
            node.faults.clear()
            await asyncio.sleep(0.15)
            await shop.rail.ready()


async def test_a_rail_without_a_wallet_reads_and_does_not_send(chain: EvmDevnet) -> None:
    async with seller(chain) as shop:
        authorization = shop.authorize()
        claim, _ = await shop.settle(authorization)
    reader = EvmRail(NETWORK, pay_to=PAY_TO, rpc=chain.rpc_url)
    await reader.start()
    await reader.ready()
    assert (await reader.outcome(claim)).state == "settled"
    bare = claim._replace(reference="", wallet="", nonce=-1, intent=b"")
    found = await reader.outcome(bare)
    assert (found.state, found.reference) == ("settled", claim.reference)
    with pytest.raises(RailUnavailable):
        await reader.prepare(authorization, offer_for(), shop.nonces)
    await reader.close()


async def test_a_rail_without_a_node_knows_nothing() -> None:
    rail = EvmRail(NETWORK, pay_to=PAY_TO)
    await rail.start()
    await rail.ready()
    await rail.close()


def test_the_port_alone_loads_no_rail() -> None:
    script = "import sys, x402kit.networks.port; print([n for n in sys.modules if 'evm' in n or n.endswith('gas')])"
    done = subprocess.run((sys.executable, "-c", script), capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    with pytest.raises(AttributeError):
        getattr(networks, "Bitcoin")  # noqa: B009  # the type checkers know that it is not there
