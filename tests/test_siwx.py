"""Wallet proofs on the wire: three dialects are read, or refused with the one documented error, in bounded time."""

from __future__ import annotations

import base64
import contextlib
import json
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.wallet_proofs import (
    BASE,
    NOW,
    SOLANA,
    URL,
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
from x402kit.errors import HeaderTooLarge, MalformedPayment
from x402kit.model import HEADER_MAX, Json
from x402kit.protocols.base58 import b58decode, b58encode
from x402kit.protocols.encoding import b64encode
from x402kit.protocols.siwx import (
    SignIn,
    build_message,
    encode_proof,
    find_proof,
    parse_proof,
    siwe_message,
    siws_message,
)
from x402kit.protocols.siwx_text import parse_sign_in, parse_time

EVM, SOL = evm_wallet(bytes(range(1, 33))), solana_wallet(bytes(range(32)))
INFO: Json = proofs().challenge(NOW, URL)["info"]
MAKERS: dict[str, Callable[[Wallet], Json]] = {"siwx": partial(standard, info=INFO), "venice": venice, "katana": katana}
GOOD: dict[str, Json] = {
    f"{dialect}-{name}": make(wallet)
    for name, wallet in (("evm", EVM), ("solana", SOL))
    for dialect, make in MAKERS.items()
}


def refused(fields: Any) -> str:
    """Why ``parse_proof`` refuses; it must."""
    with pytest.raises(MalformedPayment) as e:
        parse_proof(header(fields))
    assert (e.value.status, e.value.code) == (400, "payment-malformed")
    return e.value.detail


# Texts

PARTS = SignIn(
    False,
    "a.example:8080",
    EVM.address,
    "http://a.example:8080/x",
    "1",
    "8453",
    "abcdefgh",
    "2026-05-13T22:30:00Z",
)


def test_the_text_for_ethereum_without_a_statement_has_two_empty_lines() -> None:
    assert siwe_message(PARTS) == (
        "a.example:8080 wants you to sign in with your Ethereum account:\n"
        f"{EVM.address}\n\n\n"
        "URI: http://a.example:8080/x\nVersion: 1\nChain ID: 8453\nNonce: abcdefgh\nIssued At: 2026-05-13T22:30:00Z"
    )


def test_the_text_for_solana_without_a_statement_has_one_empty_line() -> None:
    parts = PARTS._replace(solana=True, address=SOL.address, chain="5eykt4UsFv8P8NJdTREpY1vzqKqZKvdp")
    assert siws_message(parts).split("\n")[:4] == [
        "a.example:8080 wants you to sign in with your Solana account:",
        SOL.address,
        "",
        "URI: http://a.example:8080/x",
    ]


LINE = st.text(st.characters(min_codepoint=32, max_codepoint=0x2FF, exclude_categories=("C", "Z"))).filter(bool)
SIGN_INS = st.builds(
    SignIn,
    solana=st.booleans(),
    domain=st.from_regex(r"[a-z0-9.:-]{1,20}", fullmatch=True),
    address=LINE,
    uri=LINE,
    version=LINE,
    chain=LINE,
    nonce=LINE,
    issued_at=LINE,
    expiration_time=st.just("") | LINE,
    not_before=st.just("") | LINE,
    request_id=st.just("") | LINE,
    statement=st.just("") | LINE,
    resources=st.lists(LINE, max_size=3).map(tuple),
    scheme=st.sampled_from(["", "https"]),
)


@given(SIGN_INS)
def test_a_text_is_read_as_it_was_written(parts: SignIn) -> None:
    assert parse_sign_in(parts.text()) == parts


@given(SIGN_INS, st.data())
def test_a_text_with_a_line_more_or_less_is_another_or_none(parts: SignIn, data: st.DataObject) -> None:
    lines = parts.text().split("\n")
    at = data.draw(st.integers(0, len(lines) - 1))
    change = data.draw(st.sampled_from(["drop", "twice"]))
    changed = "\n".join(lines[:at] + (lines[at : at + 1] * 2 if change == "twice" else []) + lines[at + 1 :])
    try:
        read = parse_sign_in(changed)
    except ValueError:
        return
    assert read != parts or changed.replace("\n\n\n", "\n\n") == parts.text().replace("\n\n\n", "\n\n")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("2026-05-13T22:30:00Z", NOW),
        ("2026-05-13T22:30:00.999Z", NOW),
        ("2026-05-14T00:30:00+02:00", NOW),
        ("1970-01-01T00:00:00Z", 0),
    ],
)
def test_times(text: str, seconds: int) -> None:
    assert parse_time(text) == seconds


@pytest.mark.parametrize(
    "text",
    [
        "",
        "2026-05-13",
        "2026-05-13T22:30:00",
        "2026-05-13 22:30:00Z",
        "2026-05-13T22:30Z",
        "20260513T223000Z",
        "2026-13-13T22:30:00Z",
        "2026-05-13T22:30:60Z",
        "２０２６-05-13T22:30:00Z",
        "2026-05-13T22:30:00+99:00",
        "2026-05-13T22:30:00.Z",
        "2026-W20-3T22:30:00Z",
    ],
)
def test_A13_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"time|month|second|offset|timedelta|isoformat"):
        parse_time(text)


# Headers


def test_A11_one_proof_in_a_request() -> None:
    new, old = b"sign-in-with-x", b"x-sign-in-with-x"
    assert find_proof([]) is None
    assert find_proof([(b"host", b"x"), (old, b"one")]) == b"one"
    assert find_proof([(new, b"one"), (old, b"one")]) == b"one"
    for headers in ([(new, b"one"), (old, b"two")], [(new, b"one"), (new, b"one")], [(old, b"a"), (old, b"b")]):
        with pytest.raises(MalformedPayment):
            find_proof(headers)
    with pytest.raises(HeaderTooLarge):
        find_proof([(new, b"A" * (HEADER_MAX + 1))])
    with pytest.raises(MalformedPayment):
        parse_proof(b"A" * (HEADER_MAX + 1))


# Dialects


@pytest.mark.parametrize("name", GOOD)
def test_a_good_proof_is_read(name: str) -> None:
    dialect, _, chain = name.partition("-")
    wallet = EVM if chain == "evm" else SOL
    proof = parse_proof(header(GOOD[name]))
    address = wallet.address.lower() if chain == "evm" else wallet.address
    assert (proof.dialect, proof.network, proof.address) == (dialect, wallet.network, address)
    assert (proof.issued_at, proof.spelling) == (NOW, wallet.address)
    assert proof.type == ("eip191" if chain == "evm" else "ed25519")
    assert len(proof.signature) == (65 if chain == "evm" else 64)
    if dialect != "katana":
        assert (proof.domain, proof.uri, proof.expires_at) == ("api.example.com", URL, NOW + 300)


def test_the_extension_rebuilds_the_text() -> None:
    proof = parse_proof(header(GOOD["siwx-evm"]))
    assert proof.message.decode() == build_message(INFO, EVM.address, BASE)
    assert (proof.nonce, proof.statement) == (INFO["nonce"], INFO["statement"])


@pytest.mark.parametrize("spelled", [8453, "8453", "eip155:8453", "base", None])
def test_a_chain_in_any_spelling(spelled: Any) -> None:
    assert parse_proof(header(venice(EVM, beside={"chainId": spelled}))).network == BASE


def test_a_venice_text_for_solana_names_the_chain_with_or_without_its_namespace() -> None:
    text = venice_text(SOL).replace("Chain ID: ", "Chain ID: solana:")
    assert parse_proof(header(venice(SOL, text=text))).network == SOLANA


@pytest.mark.parametrize("name", GOOD)
@pytest.mark.parametrize("missing", ["address", "signature"])
def test_what_must_be_there(name: str, missing: str) -> None:
    assert missing in refused({key: value for key, value in GOOD[name].items() if key != missing})


@pytest.mark.parametrize("field", ["domain", "uri", "version", "nonce", "issuedAt", "chainId", "type"])
def test_the_extensions_own_fields_must_be_there(field: str) -> None:
    values: list[Any] = [None, "", 1.5, [], {}]
    for value in values:
        refused({**GOOD["siwx-evm"], field: value})


@pytest.mark.parametrize("resources", ["https://a.example", [1], {}, ["x\ny"], ["x\n- y"]])
def test_resources_are_a_list_of_texts(resources: Any) -> None:
    refused({**GOOD["siwx-evm"], "resources": resources})


def test_a_challenge_that_brings_lines_of_its_own_is_not_signed() -> None:
    with pytest.raises(ValueError, match="another text"):
        build_message({**INFO, "resources": ["https://a.example\n- https://evil.example"]}, EVM.address, BASE)
    with pytest.raises(ValueError, match="missing"):
        build_message({**INFO, "nonce": None}, EVM.address, BASE)


def test_a_header_of_our_own_is_read() -> None:
    signature = EVM.sign(build_message(INFO, EVM.address, BASE))
    assert parse_proof(encode_proof(INFO, EVM.address, BASE, signature).encode()) == parse_proof(
        header(GOOD["siwx-evm"])
    )


@pytest.mark.parametrize("field", ["network", "address", "issued_at"])
def test_katanas_own_fields_must_be_there(field: str) -> None:
    values: list[Any] = [None, "", True, [], {}, -1, "x"]
    for value in values:
        refused({**GOOD["katana-evm"], field: value})


@pytest.mark.parametrize("field", ["statement", "expirationTime", "requestId", "domain", "uri"])
def test_A14_a_field_that_brings_lines_of_its_own_is_refused(field: str) -> None:
    refused({**GOOD["siwx-evm"], field: "x\nURI: https://evil.example"})
    refused({**GOOD["siwx-evm"], field: "x\r\ny"})


def test_A14_hidden_characters_are_refused() -> None:
    for hidden in ("\u202e", "\r", "\u2028", "\x00", "\u200b"):
        refused(katana(EVM, text=f"imgnAI {hidden}{EVM.address} {NOW}"))
        refused(venice(EVM, text=venice_text(EVM).replace("Sign in to", f"Sign in {hidden}to")))


SPELLINGS: dict[str, Callable[[bytes], str]] = {
    "base58": b58encode,
    "base64": b64encode,
    "unpadded": lambda made: b64encode(made).rstrip("="),
    "hex": lambda made: made.hex(),
    "0x": lambda made: "0x" + made.hex(),
}


@pytest.mark.parametrize("spell", SPELLINGS.values(), ids=SPELLINGS)
def test_a_solana_signature_in_each_spelling(spell: Callable[[bytes], str]) -> None:
    made = b58decode(GOOD["katana-solana"]["signature"])
    assert parse_proof(header({**GOOD["katana-solana"], "signature": spell(made)})).signature == made


@given(st.binary(min_size=64, max_size=64))
def test_no_solana_signature_is_taken_for_another(made: bytes) -> None:
    for spell in (SPELLINGS[name] for name in ("base58", "base64", "hex", "0x")):
        assert parse_proof(header({**GOOD["katana-solana"], "signature": spell(made)})).signature == made


@pytest.mark.parametrize("signature", ["", "0x", "0x0", "0x 00", "1234", "xyz", None, 5, "0x" + "00" * 4097, "0xgg"])
def test_what_is_no_signature(signature: Any) -> None:
    refused({**GOOD["siwx-evm"], "signature": signature})
    refused({**GOOD["siwx-solana"], "signature": signature})


# What is said twice must agree (F03)


@pytest.mark.parametrize("wallet", [EVM, SOL], ids=["evm", "solana"])
def test_F03_another_address_beside_the_text(wallet: Wallet) -> None:
    other = (evm_wallet() if wallet is EVM else solana_wallet()).address
    refused(venice(wallet, beside={"address": other}))
    refused(katana(wallet, beside={"address": other}))


@pytest.mark.parametrize(
    "beside",
    [
        {"chainId": 1},
        {"chainId": "eip155:84532"},
        {"chainId": SOLANA},
        {"network": "solana"},
        {"type": "ed25519"},
        {"timestamp": (NOW + 31) * 1000},
        {"timestamp": (NOW - 32) * 1000},
        {"timestamp": "now"},
        {"issued_at": NOW + 1},
        {"address": SOL.address},
        {"chainId": 8453.0},
        {"chainId": True},
        {"chainId": "eip155:08453"},
    ],
)
def test_F03_venice_fields_that_contradict_the_text(beside: Json) -> None:
    refused(venice(EVM, beside=beside))


def test_F03_a_chain_of_the_other_kind_of_wallet() -> None:
    refused({**GOOD["siwx-evm"], "chainId": SOLANA})
    refused({**GOOD["siwx-evm"], "type": "ed25519"})
    refused({**GOOD["siwx-solana"], "chainId": BASE})
    refused({**GOOD["katana-evm"], "network": SOLANA})
    refused({**GOOD["katana-solana"], "network": BASE})
    refused(venice(EVM, text=venice_text(EVM).replace("Chain ID: 8453", "Chain ID: base")))
    refused(venice(EVM, text=venice_text(EVM).replace("with your Ethereum", "with your Solana")))


def test_F04_a_solana_address_in_lower_case_is_another_or_none() -> None:
    for name in ("siwx-solana", "katana-solana"):
        fields = GOOD[name]
        lowered = {**fields, "address": fields["address"].lower()}
        try:
            assert parse_proof(header(lowered)).address != fields["address"]
        except MalformedPayment:
            continue


LINES = [f"Wallet: {EVM.address}", f"Network: {BASE}", "Nonce: 0123456789abcdef", f"Issued At: {NOW}"]


@pytest.mark.parametrize(
    ("at", "line"),
    [
        (0, "Wallet: 0x" + "11" * 20),
        (0, "WALLET : 0x" + "11" * 20),
        (1, "Network: eip155:1"),
        (1, "Network: solana"),
        (1, "network: nowhere"),
        (2, "Nonce: short"),
        (2, "Nonce: with a space in it"),
        (3, f"Issued At: {NOW + 1}"),
        (3, "Issued At: soon"),
        (3, f"issued at: 0{NOW}"),
        (3, ""),
        (3, f"Address: {EVM.address} and more"),
    ],
)
def test_F03_katana_lines_that_contradict_the_json(at: int, line: str) -> None:
    lines = [*LINES[:at], line, *LINES[at + 1 :]]
    refused(katana(EVM, text="\n".join(["imgnAI X-Sign-In-With-X", EVM.address, *lines])))


def test_F03_a_line_that_comes_twice() -> None:
    for line in LINES:
        refused(katana(EVM, text="\n".join(["imgnAI", *LINES, line.lower()])))


def test_katana_lines_as_others_may_spell_them() -> None:
    text = f"imgnAI\nWallet: {EVM.address.lower()}\nNetwork: base\nIssued At: 2026-05-13T22:30:00.123Z"
    proof = parse_proof(header(katana(EVM, text=text)))
    assert (proof.network, proof.names_network, len(proof.nonce)) == (BASE, True, 64)
    spelled = {"network": "base", "nonce": "0123456789abcdef"}
    assert parse_proof(header(katana(EVM, text="\n".join(["imgnAI", *LINES]), beside=spelled))).network == BASE
    free = parse_proof(header(katana(EVM, text=f"imgnAI, it is me, {EVM.address}, at {NOW}.")))
    assert not free.names_network
    refused(katana(EVM, text="\n".join(["imgnAI", *LINES]), beside={"nonce": "another one"}))


def test_F01_a_time_that_nobody_signed_is_no_time() -> None:
    assert "time" in refused(katana(EVM, text=f"imgnAI\nWallet: {EVM.address}\nNonce: 0123456789abcdef"))


def test_F02_a_text_of_another_dialect_is_no_free_text() -> None:
    fields = katana(EVM, text=venice_text(EVM, domain="evil.example", statement=f"imgnAI {EVM.address} {NOW}"))
    assert parse_proof(header(fields)).dialect == "venice"
    fields = katana(EVM, text=f"imgnAI\n{venice_text(EVM, domain='evil.example')}")
    refused(fields)


# Fuzz


def _bounded(raw: bytes) -> None:
    start = time.thread_time()
    with contextlib.suppress(MalformedPayment):
        parse_proof(raw)
    assert time.thread_time() - start < 0.25


@given(st.binary(max_size=600))
def test_A12_any_bytes_are_read_or_refused(raw: bytes) -> None:
    _bounded(raw)
    _bounded(base64.b64encode(raw))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**20), 10**20) | st.text() | st.floats(allow_nan=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


@given(st.sampled_from(sorted(GOOD)), st.data())
def test_A12_a_good_proof_with_any_field_changed_is_read_or_refused(name: str, data: st.DataObject) -> None:
    fields = dict(GOOD[name])
    extra = ["statement", "notBefore", "requestId", "resources", "nonce", "timestamp", "chainId", "message"]
    field = data.draw(st.sampled_from([*fields, *extra]))
    fields[field] = data.draw(JSON)
    _bounded(base64.b64encode(json.dumps(fields).encode()))


@given(st.sampled_from(sorted(GOOD)), st.data())
def test_A12_a_good_proof_with_any_byte_changed_is_read_or_refused(name: str, data: st.DataObject) -> None:
    raw = bytearray(header(GOOD[name]))
    for _ in range(data.draw(st.integers(1, 3))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    _bounded(bytes(raw))


@pytest.mark.parametrize(
    "raw",
    [
        b"1" * HEADER_MAX,
        b64encode(b'{"message":"' + b"\\n" * 5000 + b'"}').encode(),
        b64encode(b'{"chainId":"solana:x","type":"ed25519","address":"' + b"z" * 12000 + b'"}').encode(),
        header({"message": "a" * 12000, "network": "base", "address": "0x" + "1" * 40, "issued_at": 1}),
        header({**GOOD["katana-solana"], "signature": "1" * 11000}),
        header({**GOOD["siwx-evm"], "resources": ["x"] * 2000}),
    ],
)
def test_K01_the_largest_headers_take_bounded_time(raw: bytes) -> None:
    _bounded(raw)
