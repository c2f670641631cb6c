"""What a wallet proof is worth: challenges without a store, verification in every dialect, and the memory of it."""

from __future__ import annotations

import json
import secrets
import sys
import tracemalloc
from typing import Any

import pytest

from tests.support.wallet_proofs import (
    BASE,
    NOW,
    ORIGIN,
    SERVICE,
    SOLANA,
    URL,
    Clock,
    Wallet,
    evm_wallet,
    header,
    katana,
    proofs,
    solana_wallet,
    standard,
    venice,
)
from x402kit.errors import ConfigError, MalformedPayment, MissingExtra, ProofRefused, RailUnavailable
from x402kit.networks import evm
from x402kit.networks.evm import HALF_ORDER
from x402kit.paywall import proofs as module
from x402kit.paywall.proofs import Proofs

WALLETS = [
    pytest.param(evm_wallet(bytes(range(1, 33))), id="evm"),
    pytest.param(solana_wallet(bytes(range(32))), id="solana"),
]
DIALECTS = ["siwx", "venice", "katana"]


def proof_of(dialect: str, wallet: Wallet, here: Proofs, now: int = NOW) -> bytes:
    """A good proof, made at ``now``."""
    if dialect == "siwx":
        return header(standard(wallet, here.challenge(now, URL)["info"]))
    return header((venice if dialect == "venice" else katana)(wallet, now))


async def reason(here: Proofs, raw: bytes) -> str:
    """Why a proof is refused; it must be, with 401."""
    with pytest.raises(ProofRefused) as e:
        await here.verify(raw)
    assert (e.value.status, e.value.code, e.value.money) == (401, "proof-refused", "no")
    return e.value.reason.removeprefix("invalid_siwx_")


# Challenges


def test_a_challenge() -> None:
    made = proofs().challenge(NOW, URL)
    info = dict(made["info"])
    assert len(bytes.fromhex(info.pop("nonce"))) == 16
    assert info == {
        "domain": "api.example.com",
        "uri": URL,
        "version": "1",
        "issuedAt": "2026-05-13T22:30:00Z",
        "expirationTime": "2026-05-13T22:35:00Z",
        "statement": "Prove to imgnAI that this wallet is yours, to use its prepaid balance.",
    }
    assert made["supportedChains"] == [
        {"chainId": BASE, "type": "eip191"},
        {"chainId": SOLANA, "type": "ed25519"},
    ]
    required = {"domain", "address", "uri", "version", "chainId", "type", "nonce", "issuedAt", "signature"}
    assert set(made["schema"]["required"]) == required <= set(made["schema"]["properties"])


def test_C11_no_two_challenges_are_alike_and_nothing_is_stored() -> None:
    here = proofs()
    nonces = {here.challenge(NOW, URL)["info"]["nonce"] for _ in range(1000)}
    assert len(nonces) == 1000
    assert not here._remembered  # pyright: ignore[reportPrivateUsage]


@pytest.mark.parametrize(
    ("url", "uri"),
    [
        (URL + "?key=SECRET", URL),
        (ORIGIN, ORIGIN),
        ("https://evil.example/x", ORIGIN + "/"),
        (ORIGIN + ".evil.example/x", ORIGIN + "/"),
        (ORIGIN + '/"\n\\é', ORIGIN + "/"),
        (ORIGIN + "/%zz", ORIGIN + "/"),
        (ORIGIN + "/%20a", ORIGIN + "/%20a"),
        (ORIGIN + "/" + "a" * 2000, ORIGIN + "/"),
        ("", ORIGIN + "/"),
    ],
)
def test_A14_whatever_the_url_a_challenge_can_be_read(url: str, uri: str) -> None:
    assert proofs().challenge(NOW, url)["info"]["uri"] == uri


def test_I12_a_long_path_is_not_remembered() -> None:
    here = proofs()
    here.challenge_text(NOW, URL)
    tracemalloc.start()
    try:
        for number in range(100):
            assert f'"uri":"{ORIGIN}/"' in here.challenge_text(NOW, f"{URL}/{number:020000}")
        assert tracemalloc.get_traced_memory()[0] < 100_000
    finally:
        tracemalloc.stop()


def test_resources_stand_in_the_challenge() -> None:
    assert proofs(resources=["https://a.example/terms"]).challenge(NOW, URL)["info"]["resources"] == [
        "https://a.example/terms"
    ]


async def test_without_an_origin_no_challenge_is_offered_and_only_katana_accepted() -> None:
    here = proofs(origin="")
    assert (here.challenge_text(NOW, URL), here.challenge(NOW, URL)) == ("", {})
    wallet = evm_wallet()
    assert (await here.verify(header(katana(wallet)))).dialect == "katana"
    elsewhere = standard(wallet, proofs().challenge(NOW, URL)["info"])
    assert await reason(here, header(elsewhere)) == "domain_mismatch"
    assert await reason(here, header(venice(wallet))) == "domain_mismatch"
    named = katana(wallet, text=f"{SERVICE}\n{wallet.address}\nIssued At: {NOW}\nDomain: api.example.com")
    assert await reason(here, header(named)) == "domain_mismatch"
    placed = katana(wallet, text=f"{SERVICE}\n{wallet.address}\nIssued At: {NOW}\nURI: {URL}")
    assert await reason(here, header(placed)) == "uri_mismatch"
    assert (await proofs().verify(header(named))).dialect == "katana"
    assert (await proofs().verify(header(placed))).dialect == "katana"


def test_without_networks_no_challenge_is_offered() -> None:
    assert proofs(networks=[]).challenge(NOW, URL) == {}


@pytest.mark.parametrize(
    "changes",
    [
        {"service": ""},
        {"service": "a" * 65},
        {"service": "naïve"},
        {"service": "two\nlines"},
        {"service": "---"},
        {"origin": "api.example.com"},
        {"origin": "ftp://api.example.com"},
        {"origin": "https://api.example.com/v1"},
        {"origin": "https://user@api.example.com"},
        {"origin": "https://"},
        {"networks": ["base"]},
        {"networks": ["bip122:000000000019d6689c085ae165831e93"]},
        {"secret": b"short"},
    ],
)
def test_a_set_up_that_cannot_work(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        proofs(**changes)


def test_a_missing_extra_is_told_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("coincurve", "sha3"):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, package, None)
            for loader in (evm._coincurve, evm._sha3):  # pyright: ignore[reportPrivateUsage]
                loader.cache_clear()
            with pytest.raises(MissingExtra):
                proofs()
            proofs(networks=[SOLANA])
        for loader in (evm._coincurve, evm._sha3):  # pyright: ignore[reportPrivateUsage]
            loader.cache_clear()
    proofs()


# Good proofs


@pytest.mark.parametrize("wallet", WALLETS)
@pytest.mark.parametrize("dialect", DIALECTS)
async def test_a_good_proof(dialect: str, wallet: Wallet) -> None:
    here = proofs()
    proven = await here.verify(proof_of(dialect, wallet, here))
    address = wallet.address.lower() if wallet.network == BASE else wallet.address
    assert (proven.owner, proven.network, proven.address) == (f"{wallet.network}:{address}", wallet.network, address)
    assert proven.nonce_id.startswith(proven.owner + ":")
    assert (proven.dialect, proven.until) == (dialect, NOW + 300 + 30 + 60)


async def test_one_account_whatever_the_dialect_and_the_spelling() -> None:
    here, key = proofs(), secrets.token_bytes(32)
    plain = evm_wallet(key)
    lower = evm_wallet(key, plain.address.lower())
    raws = [proof_of(dialect, wallet, here) for dialect in DIALECTS for wallet in (plain, lower)]
    assert len({(await here.verify(raw)).owner for raw in raws}) == 1


async def test_a_secret_that_is_being_rotated_still_counts() -> None:
    old, new = secrets.token_bytes(32), secrets.token_bytes(32)
    wallet = evm_wallet()
    raw = header(standard(wallet, proofs(secret=old).challenge(NOW, URL)["info"]))
    known: dict[str, Any] = {"service": SERVICE, "origin": ORIGIN, "networks": [BASE], "clock": Clock()}
    assert (await Proofs(new, old, **known).verify(raw)).dialect == "siwx"
    assert await reason(Proofs(new, **known), raw) == "nonce"


@pytest.mark.parametrize(
    "origin", ["https://API.example.com", "https://api.example.com:443", "https://api.example.com/"]
)
async def test_an_origin_is_compared_as_urls_spell_it(origin: str) -> None:
    here = proofs(origin=origin)
    assert here.challenge(NOW, URL)["info"]["domain"] == "api.example.com"
    assert (await here.verify(header(venice(evm_wallet())))).dialect == "venice"


async def test_an_origin_with_a_port() -> None:
    here = proofs(origin="http://127.0.0.1:8080")
    info = here.challenge(NOW, "http://127.0.0.1:8080/v1")["info"]
    assert (info["domain"], info["uri"]) == ("127.0.0.1:8080", "http://127.0.0.1:8080/v1")
    assert (await here.verify(header(standard(evm_wallet(), info)))).dialect == "siwx"


async def test_an_unknown_network_is_refused() -> None:
    here = proofs(networks=[SOLANA])
    assert await reason(here, header(katana(evm_wallet()))) == "unsupported_chain"
    assert await reason(here, header(venice(evm_wallet()))) == "unsupported_chain"


# Signatures


@pytest.mark.parametrize("wallet", WALLETS)
@pytest.mark.parametrize("dialect", DIALECTS)
async def test_another_keys_signature(dialect: str, wallet: Wallet) -> None:
    here = proofs()
    other = evm_wallet() if wallet.network == BASE else solana_wallet()
    thief = Wallet(wallet.network, wallet.address, other.sign)
    assert await reason(here, proof_of(dialect, thief, here)) == "signature"


async def test_B04_the_high_s_twin_is_refused() -> None:
    fields = katana(evm_wallet())
    made = bytes.fromhex(fields["signature"][2:])
    twin = made[:32] + (2 * HALF_ORDER + 1 - int.from_bytes(made[32:64], "big")).to_bytes(32, "big")
    twin += bytes((55 - made[64],))
    assert await reason(proofs(), header({**fields, "signature": "0x" + twin.hex()})) == "signature"


async def test_B04_a_signature_with_v_0_or_1_is_the_same_proof() -> None:
    here, fields = proofs(), katana(evm_wallet())
    made = bytes.fromhex(fields["signature"][2:])
    again = {**fields, "signature": "0x" + (made[:64] + bytes((made[64] - 27,))).hex().upper()}
    first, second = await here.verify(header(fields)), await here.verify(header(again))
    assert first == second  # one nonce, so one spend


async def test_a_solana_key_of_small_order_proves_nothing() -> None:
    nobody = Wallet(SOLANA, "1" * 32, lambda text: "0x" + (1).to_bytes(32, "little").hex() + "00" * 32)
    assert await reason(proofs(), header(katana(nobody))) == "signature"


# Memory


async def test_a_proof_is_remembered_until_its_window_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    here = proofs(clock)
    for dialect, end in (("siwx", 330), ("venice", 300), ("katana", 300)):
        for wallet in (evm_wallet(), solana_wallet()):
            clock.now = NOW
            raw = proof_of(dialect, wallet, here)
            first = await here.verify(raw)
            with monkeypatch.context() as patch:
                patch.setattr(module, "parse_proof", None)  # a second look does not read it again
                clock.now = NOW + end
                assert await here.verify(raw) is first
            clock.now = NOW + end + 1
            assert await reason(here, raw) == "issued_at_too_old"
            assert first.until > NOW + end  # the spent nonce outlives the window


async def test_what_is_refused_is_not_remembered() -> None:
    here = proofs()
    raw = header({**katana(evm_wallet()), "signature": "0x" + "11" * 65})
    for _ in range(2):
        assert await reason(here, raw) == "signature"
    with pytest.raises(MalformedPayment):
        await here.verify(b"no proof")
    assert not here._remembered  # pyright: ignore[reportPrivateUsage]


async def test_I12_the_memory_is_bounded_and_the_proof_used_last_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_REMEMBERED_MAX", 8)
    here = proofs()
    kept = header(katana(evm_wallet()))
    first = await here.verify(kept)
    for _ in range(20):
        await here.verify(header(katana(solana_wallet())))
        assert await here.verify(kept) is first
    assert len(here._remembered) == 8  # pyright: ignore[reportPrivateUsage]


# Contract wallets (the chain's part is played in test_proofs_contract.py)


class Contract:
    """A wallet contract that we hold in our hand: what it says, and how often it was asked."""

    def __init__(self) -> None:
        self.says: bool | Exception = True
        self.asked = 0

    async def is_valid_signature(self, address: str, digest: bytes, signature: bytes) -> bool:
        self.asked += 1
        if isinstance(self.says, Exception):
            raise self.says
        return self.says


CONTRACT = Wallet(BASE, "0x" + "ab" * 20, lambda text: "0x" + "00" * 96)


async def test_F07_what_a_contract_says_is_remembered_for_half_a_minute() -> None:
    clock, contract = Clock(), Contract()
    here = proofs(clock, contract_wallets={BASE: contract})
    raw = header(katana(CONTRACT))
    proven = await here.verify(raw)
    assert await here.verify(raw) == proven
    assert contract.asked == 1
    clock.now += 31
    assert await here.verify(raw) == proven
    assert contract.asked == 2
    contract.says = False
    assert await here.verify(raw) == proven
    with pytest.raises(ProofRefused):
        await here.verify(raw, fresh=True)
    with pytest.raises(ProofRefused):  # and what it said before is forgotten
        await here.verify(raw)


async def test_a_key_is_not_asked_again_when_it_must_be_fresh() -> None:
    contract = Contract()
    here = proofs(contract_wallets={BASE: contract})
    raw = header(katana(evm_wallet()))
    assert await here.verify(raw) is await here.verify(raw, fresh=True)
    assert contract.asked == 0


async def test_a_contract_that_cannot_be_asked_is_no_refusal() -> None:
    contract = Contract()
    contract.says = RailUnavailable()
    here = proofs(contract_wallets={BASE: contract})
    raw = header(katana(CONTRACT))
    with pytest.raises(RailUnavailable):
        await here.verify(raw)
    contract.says = True
    assert (await here.verify(raw)).address == CONTRACT.address


async def test_without_a_node_a_contract_wallet_is_refused() -> None:
    assert await reason(proofs(), header(katana(CONTRACT))) == "signature"


async def test_K03_only_so_many_contracts_are_asked_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    contract = Contract()
    here = proofs(contract_wallets={BASE: contract})
    monkeypatch.setattr(module, "_ASKING_MAX", 0)
    with pytest.raises(RailUnavailable):
        await here.verify(header(katana(CONTRACT)))
    assert contract.asked == 0


def test_a_challenge_is_json_in_one_line() -> None:
    text = proofs().challenge_text(NOW, URL)
    assert json.loads(text)["info"]["uri"] == URL
    assert text.isascii()
    assert "\n" not in text
    assert len(text) < 1200
