"""A Solana rail is set up: keys in all their forms, addresses, chain and mint, SOL for the fees, the price of SOL."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from solders.keypair import Keypair
from solders.signature import Signature

from tests.support.faulty_rpc import Fault, FaultyRpc, faulty_rpc
from tests.support.svm_payments import NETWORK, PAY_TO, TOKEN_2022, USDC, offer_for, owned_by, svm_seller
from tests.test_faults_D import extension, fee
from x402kit.devnet import SvmDevnet
from x402kit.errors import ConfigError, RailUnavailable
from x402kit.money import Asset
from x402kit.networks import FeePolicy, FixedPrice, PythFeed, Solana, SolanaDevnet, SvmOptions, SvmRail
from x402kit.networks.facilitator import FacilitatorRail
from x402kit.networks.port import scanning
from x402kit.networks.rpc import Rpc
from x402kit.networks.svm_hints import Hints
from x402kit.networks.svm_reads import Node
from x402kit.networks.svm_wallet import SvmWallet, secret_key

RPC = "http://127.0.0.1:1"
PAIR = Keypair.from_seed(bytes(range(32)))
KEY = str(PAIR)


@pytest.fixture
async def node(svm: SvmDevnet) -> AsyncIterator[FaultyRpc]:
    async with faulty_rpc(svm.rpc_url) as made:
        yield made


# Keys


def test_keys_come_in_all_their_usual_forms(tmp_path: Path) -> None:
    array = json.dumps(list(bytes(PAIR)))
    path = tmp_path / "id.json"
    path.write_text(array)
    for key in (KEY, bytes(PAIR), bytes(PAIR)[:32], array, str(path), path):
        wallet = SvmWallet(key)
        assert wallet.address == str(PAIR.pubkey())
        assert wallet.sign_local(b"message") == bytes(PAIR.sign_message(b"message"))
        assert wallet.is_local


@pytest.mark.parametrize(
    "key", ["", "0x12", KEY[:-1], "[1, 2]", "[300]", '["a"]', "{}.json", "/no/such.json", b"short"]
)
def test_I11_a_wrong_key_is_refused_and_not_shown(key: str | bytes) -> None:
    with pytest.raises(ConfigError) as refused:
        secret_key(key)
    assert not key or str(key) not in str(refused.value)


def test_a_key_whose_halves_differ_is_refused() -> None:
    torn = bytes(PAIR)[:32] + bytes(Keypair().pubkey())
    with pytest.raises(ConfigError, match="public half"):
        _ = SvmWallet(torn).address
    assert KEY not in repr(SvmWallet(KEY))


class Remote:
    """A signer somewhere else: it signs later, or something else."""

    def __init__(self, lie: bytes | None = None, fail: bool = False) -> None:
        self.lie, self.fail = lie, fail

    def pubkey(self) -> Any:
        return PAIR.pubkey()

    async def sign_message(self, message: bytes, /) -> Any:
        if self.fail:
            raise OSError("the vault is sealed")
        return PAIR.sign_message(message) if self.lie is None else self.lie


async def test_any_object_that_signs_is_a_wallet() -> None:
    for signer in (PAIR, Remote()):
        wallet = SvmWallet(signer=signer)
        assert (wallet.address, wallet.is_local) == (str(PAIR.pubkey()), False)
        assert await wallet.sign(b"m") == bytes(PAIR.sign_message(b"m"))
    for bad in (Remote(lie=bytes(64)), Remote(lie=b"x"), Remote(fail=True)):
        with pytest.raises(RailUnavailable):
            await SvmWallet(signer=bad).sign(b"m")
    with pytest.raises(ConfigError):
        SvmWallet(KEY, PAIR)
    with pytest.raises(ConfigError):
        SvmWallet(signer=Signature.default())  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


async def test_a_payment_is_settled_by_a_foreign_signer(svm: SvmDevnet) -> None:
    pair = Keypair.from_base58_string(svm.accounts[0].secret_key)
    async with svm_seller(svm, wallet=SvmWallet(signer=pair)) as shop:
        _, outcome = await shop.settle(shop.authorize())
        assert outcome.state == "settled"


# Rails


@pytest.mark.parametrize(
    ("settings", "fault"),
    [
        ({"pay_to": "0x12"}, "pay_to"),
        ({"pay_to": PAY_TO + "1"}, "pay_to"),
        ({"pay_to": USDC.address}, "mint"),
        ({"key": None}, "exactly one"),
        ({"facilitator": "https://f.example.com"}, "exactly one"),
        ({"rpc": None}, "needs rpc"),
        *(({"confirmations": value}, "confirmations") for value in (-1, "2", 1.5, True)),
        ({"network": "solana:devnet"}, "Solana network"),
        ({"network": "eip155:8453"}, "Solana network"),
        ({"network": "solana:" + "1" * 32}, "no asset is known"),
        ({"asset": Asset("solana:" + "1" * 32, USDC.address, "X", 6)}, "no asset is known"),
        ({"options": SvmOptions(relaxed=True, create_recipient=True)}, "must hold the rent"),
    ],
)
def test_a_wrong_set_up_is_refused(settings: dict[str, Any], fault: str) -> None:
    terms: dict[str, Any] = {"pay_to": PAY_TO, "key": KEY, "rpc": RPC, **settings}
    with pytest.raises(ConfigError, match=fault):
        Solana(**terms)


def test_options_and_policies_are_checked() -> None:
    with pytest.raises(ConfigError, match="relaxed"):
        SvmOptions(create_recipient=True)
    with pytest.raises(ConfigError, match="256"):
        SvmOptions(memo="é" * 129)
    for numbers in ({"window_seconds": 0}, {"margin_percent": -1}, {"lamports": 1}, {"stale_seconds": -1}):
        with pytest.raises(ConfigError, match="out of range"):
            FeePolicy(FixedPrice("150"), **numbers)


def test_the_public_devnet_and_a_facilitator() -> None:
    assert SolanaDevnet(pay_to=PAY_TO, key=KEY, rpc=RPC).network == "solana:EtWTRABZaYq6iMfeYKouRu166VU2xqa1"
    rail = Solana(pay_to=PAY_TO, facilitator="https://f.example.com", fee_payer=str(PAIR.pubkey()))
    assert isinstance(rail, FacilitatorRail)
    assert rail.extra() == {"feePayer": str(PAIR.pubkey())}
    assert scanning(rail) is None


def test_a_base_only_process_loads_nothing_of_solana() -> None:
    script = (
        "import sys\n"
        "from x402kit import Paywall\n"
        "from x402kit.networks import Base\n"
        f"Paywall([Base(pay_to='0x{'c0' * 20}', key='{'11' * 32}', rpc='{RPC}')], ':memory:')\n"
        "print([name for name in sys.modules if 'svm' in name or 'solders' in name])"
    )
    done = subprocess.run((sys.executable, "-c", script), capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_making_a_rail_loads_no_chain_package() -> None:
    script = (
        "import sys\n"
        "from x402kit.networks import Solana\n"
        f"Solana(pay_to='{PAY_TO}', key='{KEY}', rpc='{RPC}')\n"
        "print([name for name in sys.modules if name.split('.')[0] in ('solders', 'solana', 'aiohttp', 'web3')])"
    )
    done = subprocess.run((sys.executable, "-c", script), capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# The chain


@pytest.mark.parametrize(
    ("genesis", "local", "refused"),
    [
        ("EtWTRABZaYq6iMfeYKouRu166VU2xqa1wcaWoxPkrZBG", True, True),
        ("A6ejCo5CZ4huW2yorjrGk74UETKsGy2qcmm5D21Gc9uV", False, True),
        ("A6ejCo5CZ4huW2yorjrGk74UETKsGy2qcmm5D21Gc9uV", True, False),
        ("5eykt4UsFv8P8NJdTREpY1vzqKqZKvdpKuc147dw2N9d", False, False),
    ],
)
async def test_L07_the_genesis_hash_says_which_network_it_is(
    svm: SvmDevnet, node: FaultyRpc, genesis: str, local: bool, refused: bool
) -> None:
    node.faults["getGenesisHash"] = Fault(result=genesis)
    if refused:
        with pytest.raises(ConfigError, match=f"the node is on solana:{genesis[:32]}"):
            async with svm_seller(svm, rpc=node.url, local=local):
                pass
    else:
        async with svm_seller(svm, rpc=node.url, local=local) as shop:
            await shop.rail.ready()


async def test_D05_the_mint_must_be_what_we_take_it_for(svm: SvmDevnet) -> None:
    mint = str(Keypair().pubkey())
    asset = Asset(NETWORK, mint, "TOK", 6)
    allowed = {"token_2022": frozenset((mint,))}

    async def refusal(**options: Any) -> str:
        try:
            async with svm_seller(svm, asset=asset, **options):
                return ""
        except ConfigError as e:
            return str(e)

    assert "is no mint" in await refusal()  # there is nothing
    svm.set_mint(mint, decimals=9)
    assert "9 decimals" in await refusal()
    svm.set_mint(mint, program=str(TOKEN_2022))
    assert "is no mint" in await refusal()  # Token-2022 only where it is on the list
    assert await refusal(**allowed) == ""
    svm.set_mint(mint, program=str(TOKEN_2022), extensions=b"\x01" + fee(0, 100))
    assert "transfer fee" in await refusal(**allowed)
    svm.set_mint(mint, program=str(TOKEN_2022), extensions=b"\x01" + extension(14, b"\x07" * 64))
    assert "transfer hook" in await refusal(**allowed)


async def test_pay_to_is_a_wallet_and_no_token_account(svm: SvmDevnet) -> None:
    account = str(owned_by(Keypair.from_base58_string(svm.accounts[1].secret_key).pubkey()))
    with pytest.raises(ConfigError, match="token account"):
        async with svm_seller(svm, pay_to=account, account=False):
            pass


async def test_B16_a_wallet_without_sol_is_not_ready(svm: SvmDevnet) -> None:
    poor = Keypair()
    svm.set_lamports(str(poor.pubkey()), 179_999)  # three settlements at the most that a payer can make of them
    async with svm_seller(svm, wallet=SvmWallet(str(poor))) as shop:
        with pytest.raises(RailUnavailable) as refused:
            await shop.rail.ready()
        assert "short of SOL" in refused.value.detail
    svm.set_lamports(str(poor.pubkey()), 180_000)
    async with svm_seller(svm, wallet=SvmWallet(str(poor))) as shop:
        await shop.rail.ready()


async def test_a_frozen_recipient_is_not_ready(svm: SvmDevnet) -> None:
    pay_to = str(Keypair().pubkey())
    svm.set_tokens(pay_to, 0, state="frozen")
    async with svm_seller(svm, pay_to=pay_to, account=False) as shop:
        with pytest.raises(RailUnavailable) as refused:
            await shop.rail.ready()
        assert "frozen" in refused.value.detail


async def test_a_rail_without_a_node_or_wallet_settles_nothing() -> None:
    rail = SvmRail(NETWORK, pay_to=PAY_TO, fee_payer=str(PAIR.pubkey()))
    await rail.start()
    await rail.ready()
    assert (rail.signers, rail.sees_chain, rail.surcharges()) == ((), False, (0,))
    with pytest.raises(RailUnavailable):
        await rail.head_block()
    claim: Any = None
    with pytest.raises(RailUnavailable):
        await rail.prepare(claim, offer_for(PAIR.pubkey()), claim)
    await rail.close()


async def test_a_rail_that_was_closed_can_be_started_again(svm: SvmDevnet) -> None:
    async with svm_seller(svm, fees=FeePolicy(FixedPrice("150.00")), hint_seconds=0.05) as shop:
        first = shop.rail.hints()
        await shop.rail.close()
        await asyncio.sleep(0.2)
        assert shop.rail.hints() == {}  # nobody looks any more, and what was seen is too old
        await shop.rail.start()
        assert set(shop.rail.hints()) == set(first)
        seen = [shop.rail.hints() for _ in range(20) if await asyncio.sleep(0.05, True)]
        assert any(each not in ({}, first) for each in seen)
        await shop.rail.ready()


async def test_for_another_recipient_the_account_must_be_there(svm: SvmDevnet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("x402kit.networks.ready._BAD_SECONDS", 0.1)
    async with svm_seller(svm) as shop:
        other = str(Keypair().pubkey())
        rail = shop.rail.for_recipient(other)
        assert (rail.pay_to, rail.signers) == (other, shop.rail.signers)
        with pytest.raises(RailUnavailable):
            await rail.ready()
        svm.set_tokens(other, 0)
        await asyncio.sleep(0.15)  # what was not ready is looked at again after a while
        await shop.rail.for_recipient(other).ready()
        for wrong in ("0x12", USDC.address):
            with pytest.raises(ConfigError):
                shop.rail.for_recipient(wrong)


# The price of SOL


async def test_fees_are_in_the_price(svm: SvmDevnet) -> None:
    async with svm_seller(svm, fees=FeePolicy(FixedPrice("150.00"), margin_percent=20)) as shop:
        await shop.rail.ready()
        # 15 000 lamports at 150 dollars for 10**9 and a fifth more: 2 700 millionths of a dollar.
        assert shop.rail.surcharge() == 2_700
        assert shop.rail.surcharges() == (2_700,)
        assert shop.rail.extra() == {"feePayer": svm.accounts[0].address}
    policy = FeePolicy(FixedPrice("150.00"))
    fresh = SvmRail(NETWORK, pay_to=PAY_TO, wallet=SvmWallet(KEY), rpc=RPC, fees=policy)
    with pytest.raises(RailUnavailable):
        fresh.surcharge()


def pyth(price: int, exponent: int, at: int, *, level: int = 1, feed: bytes = PythFeed().feed_id) -> bytes:
    """A price account as Pyth's receiver writes it."""
    head = bytes.fromhex("22f123639d7ef4cd") + bytes(32) + bytes((level,)) + feed
    numbers = price.to_bytes(8, "little", signed=True) + bytes(8) + exponent.to_bytes(4, "little", signed=True)
    return head + numbers + at.to_bytes(8, "little", signed=True) + bytes(32)


async def test_pyths_price_is_read_and_a_stale_one_is_none(svm: SvmDevnet) -> None:
    feed = PythFeed(str(Keypair().pubkey()))
    owner = "rec5EKMGg6MxZYaMdyBfgwp4d5rB9T1VQH5pJv5LtFJ"
    chain = Rpc(svm.rpc_url)
    now = int(time.time())

    def put(data: bytes, owner: str = owner) -> None:
        account = {"lamports": 10**9, "owner": owner, "data": data.hex(), "executable": False}
        svm.rpc("surfnet_setAccount", feed.address, account)

    with pytest.raises(ValueError, match="no price feed"):
        await feed.read(Node(chain), now)
    put(pyth(15_012_345_678, -8, now))
    assert await feed.read(Node(chain), now) == (15_012_345_678, 8)
    for data, fault in (
        (pyth(15_012_345_678, -8, now - 601), "stale"),
        (pyth(15_012_345_678, -8, now + 60), "stale"),
        (pyth(0, -8, now), "no price"),
        (pyth(-5, -8, now), "no price"),
        (pyth(1, 3, now), "no price"),
        (pyth(1, -8, now, level=0), "fully verified"),
        (pyth(1, -8, now, feed=bytes(32)), "fully verified"),
        (pyth(1, -8, now)[:100], "no price feed"),
        (bytes(134), "no price feed"),
    ):
        put(data)
        with pytest.raises(ValueError, match=fault):
            await feed.read(Node(chain), now)
    put(pyth(15_012_345_678, -8, now), owner=str(TOKEN_2022))
    with pytest.raises(ValueError, match="no price feed"):
        await feed.read(Node(chain), now)
    await chain.close()


async def test_a_blockhash_that_can_not_be_read_is_left_out_in_time(svm: SvmDevnet, node: FaultyRpc) -> None:
    now = 0.0
    chain = Rpc(node.url)
    hints = Hints(Node(chain), 5, monotonic=lambda: now)
    await hints.start()
    assert set(hints.now()) == {"recentBlockhash", "lastValidBlockHeight"}
    node.faults["getLatestBlockhash"] = Fault(html=502)
    await hints._look()  # pyright: ignore[reportPrivateUsage]  # without waiting five seconds
    assert hints.now() != {}
    now = 15.0
    assert hints.now() == {}
    await hints.close()
    await chain.close()
