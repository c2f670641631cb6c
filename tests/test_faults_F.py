"""Group F: wallet proofs, as far as they are read and verified. Spending and answers are the gate's."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.wallet_proofs import (
    BASE,
    NOW,
    ORIGIN,
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
    venice_text,
)
from x402kit.errors import ServerError
from x402kit.model import Json
from x402kit.paywall.proofs import Proofs, Proven
from x402kit.protocols.base58 import b58encode
from x402kit.protocols.siwx import build_message, sign_in_json

EVM, SOL = evm_wallet(bytes(range(1, 33))), solana_wallet(bytes(range(32)))


async def verdict(fields: Json, now: float = NOW, here: Proofs | None = None) -> str:
    """``good``, the reason of a 401, or ``malformed``."""
    try:
        await (here or proofs(Clock(now))).verify(header(fields))
    except ServerError as e:
        return {400: "malformed", 401: e.reason.removeprefix("invalid_siwx_")}[e.status]
    return "good"


def info(now: int = NOW, **changes: Any) -> Json:
    return {**proofs().challenge(now, URL)["info"], **changes}


async def proven(fields: Json, here: Proofs | None = None) -> Proven:
    return await (here or proofs()).verify(header(fields))


# F01: what is spent once


async def test_F01_one_nonce_of_one_wallet_is_one_spend_however_it_is_spelled() -> None:
    here, challenge = proofs(), info()
    fields = standard(EVM, challenge)
    lower = Wallet(BASE, EVM.address.lower(), EVM.sign)
    shown = [fields, {**fields, "extra": 1}, dict(reversed(fields.items())), standard(lower, challenge)]
    assert len({(await proven(each, here)).nonce_id for each in shown}) == 1
    assert (await proven(standard(evm_wallet(), challenge), here)).nonce_id != (await proven(fields, here)).nonce_id
    assert (await proven(standard(EVM, info()), here)).nonce_id != (await proven(fields, here)).nonce_id


async def test_F01_our_nonce_in_capitals_is_not_ours() -> None:
    challenge = info()
    while challenge["nonce"].upper() == challenge["nonce"]:
        challenge = info()
    assert await verdict(standard(EVM, {**challenge, "nonce": challenge["nonce"].upper()})) == "nonce"


async def test_F01_a_nonce_of_the_clients_own_is_refused_in_the_extension() -> None:
    for nonce in ("0" * 32, "f" * 32, "abcdefgh", "Z" * 32, "0" * 30, "0" * 34):
        assert await verdict(standard(EVM, info(nonce=nonce))) == "nonce"


async def test_F01_a_nonce_for_another_page_or_of_another_secret_is_refused() -> None:
    assert await verdict(standard(EVM, info(uri=ORIGIN + "/v1/images"))) == "nonce"
    other = proofs(secret=b"another secret, also long").challenge(NOW, URL)["info"]
    assert await verdict(standard(EVM, other)) == "nonce"


async def test_F01_a_katana_text_without_a_nonce_is_spent_by_its_digest() -> None:
    text = f"imgnAI\nWallet: {EVM.address}\nNetwork: {BASE}\nIssued At: {NOW}"
    fields = katana(EVM, text=text)
    assert (await proven(fields)).nonce_id == (await proven({**fields, "x": 1})).nonce_id
    assert (await proven(katana(EVM, text=text + "\n"))).nonce_id != (await proven(fields)).nonce_id


async def test_F01_of_several_times_in_a_katana_text_without_a_line_for_it_none_counts() -> None:
    """Who saw the proof would show it again as of the later one, when what it spent is forgotten."""
    text = f"imgnAI\n{EVM.address}\nSigned: {NOW}\nUntil: {NOW + 3600}"
    for time in (NOW, NOW + 3600):
        assert await verdict(katana(EVM, time, text=text), time) == "malformed"
    for other in ("", f"Expiration Time: {NOW + 3600}", f"Nonce: {NOW + 3600}"):
        text = f"imgnAI {EVM.address} {NOW}\n{other}"
        assert await verdict(katana(EVM, text=text)) == "good"
        assert await verdict(katana(EVM, NOW + 3600, text=text), NOW + 3600) == "malformed"


async def test_F01_a_katana_text_that_names_no_network_is_one_spend_on_all_of_them() -> None:
    here = proofs(networks=[BASE, "eip155:137"])
    text = f"imgnAI\nWallet: {EVM.address}\nNonce: 0123456789abcdef\nIssued At: {NOW}"
    fields = katana(EVM, text=text)
    first, second = await proven(fields, here), await proven({**fields, "network": "polygon"}, here)
    assert first.owner != second.owner
    assert first.nonce_id == second.nonce_id


async def test_F01_a_spent_nonce_is_remembered_longer_than_the_proof_is_good() -> None:
    for issued in (NOW, NOW + 30):  # at once, and ahead of our clock
        for fields in (standard(EVM, info(issued)), venice(EVM, issued), katana(EVM, issued)):
            until = (await proven(fields)).until
            assert await verdict(fields, until - 59) == "issued_at_too_old"


# F02: another site's text


@pytest.mark.parametrize(
    "domain",
    [
        "evil.com",
        "api.example.com.evil.com",
        "xapi.example.com",
        "API.example.com",
        "api.example.com:443",
        "api.example.com:8443",
        "api.example.com.",
        "аpi.example.com",  # Cyrillic а
        "xn--pi-6kc.example.com",
        "user@api.example.com",
    ],
)
async def test_F02_a_text_for_another_domain(domain: str) -> None:
    text = f"imgnAI\n{EVM.address}\nIssued At: {NOW}\nDomain: {domain}"
    for fields in (standard(EVM, info(domain=domain)), venice(EVM, domain=domain), katana(EVM, text=text)):
        assert await verdict(fields) == "domain_mismatch"


async def test_F02_the_scheme_where_the_text_has_one() -> None:
    text = venice_text(EVM)
    assert await verdict(venice(EVM, text="https://" + text)) == "good"
    assert await verdict(venice(EVM, text="http://" + text)) == "domain_mismatch"
    challenge = info()
    signature = EVM.sign("https://" + build_message(challenge, EVM.address, BASE))
    fields = sign_in_json({**challenge, "domain": "https://api.example.com"}, EVM.address, BASE, signature)
    assert await verdict(fields) == "malformed"


async def test_F02_a_text_without_a_domain_or_without_our_name() -> None:
    assert await verdict({**standard(EVM, info()), "domain": ""}) == "malformed"
    assert await verdict(venice(EVM, text=venice_text(EVM).removeprefix("api.example.com"))) == "malformed"
    others = ("imgnAI-api", "my-imgnAI", "imgnAI.test", "www.imgnAI", "imgnAI_2", "imgnAI@evil.com", "imgnAIé")
    for service in ("imgnai", "imgnAIx", "notimgnAI", "Venice", *others):
        assert await verdict(katana(EVM, service=service)) == "domain_mismatch"
    for service in ("[imgnAI]", "imgnAI.", "imgnAI:", "imgnAI -", "- imgnAI", '"imgnAI"'):
        assert await verdict(katana(EVM, service=service)) == "good"


@pytest.mark.parametrize(
    "uri",
    [
        "http://api.example.com/v1",
        "https://api.example.com:8443/v1",
        "https://api.example.com@evil.com/",
        "https://api.example.com.evil.com/",
        "https://evil.com/https://api.example.com/",
        "https://API.example.com/",
        "https://api.example.com\\@evil.com/",
        "urn:api.example.com",
        "/v1",
    ],
)
async def test_F02_a_uri_elsewhere(uri: str) -> None:
    assert await verdict(standard(EVM, info(uri=uri))) == "uri_mismatch"
    assert await verdict(venice(EVM, uri=uri)) == "uri_mismatch"
    text = f"imgnAI\n{EVM.address}\nIssued At: {NOW}\nURI: {uri}"
    assert await verdict(katana(EVM, text=text)) == "uri_mismatch"


async def test_F02_any_page_of_ours_will_do_where_the_client_picks_it() -> None:
    for uri in (ORIGIN, ORIGIN + "/", ORIGIN + "?a=b", ORIGIN + "/api/v1/x402/balance/0x1?x#y"):
        assert await verdict(venice(EVM, uri=uri)) == "good"


async def test_F02_another_sites_text_that_quotes_us() -> None:
    text = venice_text(EVM, domain="evil.com", statement=f"imgnAI Wallet {EVM.address} {NOW}")
    assert await verdict(katana(EVM, text=text)) == "domain_mismatch"


# F03: whose signature, on which chain


async def test_F03_a_signature_of_the_other_kind() -> None:
    evm_signature, solana_signature = EVM.sign("x"), SOL.sign("x")
    for fields, signature in ((katana(EVM), solana_signature), (katana(SOL), evm_signature)):
        assert await verdict({**fields, "signature": signature}) == "malformed"
    assert await verdict({**standard(SOL, info()), "type": "eip191"}) == "malformed"
    assert await verdict({**katana(SOL), "network": BASE}) == "malformed"


async def test_F03_signed_for_another_chain() -> None:
    here = proofs(networks=[BASE, "eip155:137"])
    polygon = Wallet("eip155:137", EVM.address, EVM.sign)
    challenge = info()
    assert await verdict(standard(polygon, challenge), here=here) == "good"
    assert await verdict({**standard(polygon, challenge), "chainId": BASE}, here=here) == "signature"
    assert await verdict(standard(polygon, challenge)) == "unsupported_chain"


async def test_F03_an_address_that_did_not_sign() -> None:
    other = evm_wallet()
    assert await verdict({**standard(EVM, info()), "address": other.address}) == "signature"
    assert await verdict({**venice(EVM), "address": other.address}) == "malformed"
    assert await verdict({**katana(EVM), "address": other.address}) == "malformed"


# F04


async def test_F04_solana_addresses_keep_their_case() -> None:
    assert (await proven(katana(SOL))).owner == f"{SOLANA}:{SOL.address}"
    for fields in (standard(SOL, info()), katana(SOL), venice(SOL)):
        assert await verdict({**fields, "address": fields["address"].lower()}) in ("malformed", "signature")
        assert await verdict({**fields, "address": fields["address"].swapcase()}) in ("malformed", "signature")


# F05: every field that we issued


@pytest.mark.parametrize("wallet", [EVM, SOL], ids=["evm", "solana"])
@pytest.mark.parametrize(
    "changes",
    [
        {"statement": "Give me all of it."},
        {"statement": None},
        {"resources": ["https://evil.com"]},
        {"resources": []},
        {"requestId": "1"},
        {"notBefore": "2026-05-13T22:30:00Z"},
        {"version": "2"},
        {"expirationTime": None},
        {"expirationTime": "2027-05-13T22:35:00Z"},
        {"expirationTime": "2026-05-13T22:35:00.000Z"},
        {"issuedAt": "2026-05-13T22:30:01Z"},
        {"issuedAt": "2026-05-13T22:30:00+00:00"},
        {"uri": ORIGIN + "/"},
        {"uri": URL + "?x"},
        {"domain": "example.com"},
    ],
)
async def test_F05_a_field_that_is_not_as_issued(wallet: Wallet, changes: Json) -> None:
    here = proofs(resources=["https://api.example.com/terms"])
    challenge = here.challenge(NOW, URL)["info"]
    assert await verdict(standard(wallet, challenge), here=here) == "good"
    assert await verdict(standard(wallet, {**challenge, **changes}), here=here) != "good"


FIELDS = ("domain", "uri", "statement", "version", "nonce", "issuedAt", "expirationTime", "notBefore", "requestId")
VALUES = st.none() | st.text(max_size=40) | st.sampled_from([URL, ORIGIN, "2026-05-13T22:31:00Z", "1", "abcdefghij"])


@given(st.sampled_from([EVM, SOL]), st.sampled_from(FIELDS), VALUES, st.data())
async def test_F05_any_other_value_of_any_field_is_refused(
    wallet: Wallet, field: str, value: str | None, data: st.DataObject
) -> None:
    challenge = info()
    issued = challenge.get(field)
    if isinstance(value, str) and issued and data.draw(st.booleans()):  # a small change
        at = data.draw(st.integers(0, 9999)) % (len(issued) + 1)
        value = issued[:at] + value[:1] + issued[at + data.draw(st.integers(0, 1)) :]
    changed = {**challenge, field: value}
    try:
        text = build_message(changed, wallet.address, wallet.network)
    except ValueError:
        text = "whatever"
    fields = sign_in_json(changed, wallet.address, wallet.network, wallet.sign(text))
    assert (await verdict(fields) == "good") == (value == issued)


# F06, and the other times


@pytest.mark.parametrize(
    ("dialect", "shift", "wanted"),
    [
        ("siwx", 5, "good"),
        ("siwx", 30, "good"),
        ("siwx", 31, "issued_at_in_future"),
        ("siwx", -330, "good"),
        ("siwx", -331, "issued_at_too_old"),
        ("venice", 5, "good"),
        ("venice", 30, "good"),
        ("venice", 31, "issued_at_in_future"),
        ("venice", -300, "good"),
        ("venice", -301, "issued_at_too_old"),
        ("katana", 5, "good"),
        ("katana", 30, "good"),
        ("katana", 31, "issued_at_in_future"),
        ("katana", -300, "good"),
        ("katana", -301, "issued_at_too_old"),
    ],
)
async def test_F06_clocks_may_differ_by_half_a_minute(dialect: str, shift: int, wanted: str) -> None:
    issued = NOW + shift
    for wallet in (EVM, SOL):
        if dialect == "siwx":
            assert await verdict(standard(wallet, info(issued))) == wanted
        else:
            assert await verdict((venice if dialect == "venice" else katana)(wallet, issued)) == wanted


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({"expirationTime": "2026-05-13T22:29:30Z"}, "good"),
        ({"expirationTime": "2026-05-13T22:29:29Z"}, "expired"),
        ({"notBefore": "2026-05-13T22:30:30Z"}, "good"),
        ({"notBefore": "2026-05-13T22:30:31Z"}, "not_yet_valid"),
        ({"expirationTime": None}, "good"),
        ({"expirationTime": "never"}, "malformed"),
        ({"notBefore": "later"}, "malformed"),
        ({"nonce": "abc1234"}, "malformed"),
        ({"nonce": "abcd-1234"}, "malformed"),
        ({"version": "2"}, "malformed"),
        ({"statement": None}, "good"),
        ({"resources": ["https://evil.com"]}, "good"),
    ],
)
async def test_F06_what_a_venice_text_says_counts(changes: Json, wanted: str) -> None:
    assert await verdict(venice(EVM, **changes)) == wanted


async def test_F06_an_early_end_is_an_end() -> None:
    clock = Clock()
    here = proofs(clock)
    fields = venice(EVM, expirationTime="2026-05-13T22:31:00Z")
    assert await verdict(fields, here=here) == "good"
    clock.now = NOW + 91
    assert await verdict(fields, here=here) == "expired"
    text = f"imgnAI\n{EVM.address}\nIssued At: {NOW}\nExpiration Time: {NOW - 31}"
    assert await verdict(katana(EVM, text=text)) == "expired"
    text = f"imgnAI\n{EVM.address}\nIssued At: {NOW}\nNot Before: {NOW + 31}"
    assert await verdict(katana(EVM, text=text)) == "not_yet_valid"


# All of it at once


@given(st.sampled_from([EVM, SOL]), st.sampled_from(["siwx", "venice", "katana"]), st.data())
async def test_F03_a_proof_with_anything_changed_proves_no_other_wallet(
    wallet: Wallet, dialect: str, data: st.DataObject
) -> None:
    fields = standard(wallet, info()) if dialect == "siwx" else (venice if dialect == "venice" else katana)(wallet)
    field = data.draw(st.sampled_from(sorted(fields)))
    value = str(fields[field])
    at = data.draw(st.integers(0, 9999)) % len(value)
    other = data.draw(st.sampled_from(["", "1", "a", "Z", " ", "\n", "0", b58encode(b"x")]))
    changed = {**fields, field: value[:at] + other + value[at + 1 :]}
    if await verdict(changed) == "good":
        assert (await proven(changed)).owner == (await proven(fields)).owner
