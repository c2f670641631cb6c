"""The Payment scheme on the wire: the other libraries' bytes, an ``id`` that binds it all, and strict readers."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from x402kit.model import HEADER_MAX, Json
from x402kit.networks.evm import keccak
from x402kit.networks.lightning_port import BITCOIN, REGTEST, SIGNET, TESTNET
from x402kit.protocols import payment_auth, payment_methods
from x402kit.protocols.accept_payment import wanted
from x402kit.protocols.auth_params import VALUES_MAX, parse_challenges, plain, quoted
from x402kit.protocols.encoding import b64encode, b64url, dump_json
from x402kit.protocols.jcs import canonical_json
from x402kit.protocols.payment_auth import (
    PAYMENT_AUTHORIZATION,
    PROBLEMS,
    PaymentChallenge,
    bound_id,
    challenge_header,
    credential_header,
    is_bound,
    parse_credential,
    read_challenges,
    read_receipt,
    read_request,
    receipt_header,
    request_text,
)

KEY = b"00000000000000000000000000000000"
REQUEST: Json = {
    "methodDetails": {"paymentHash": "00" * 32, "network": "regtest", "invoice": "lnbcrt1"},
    "currency": "sat",
    "amount": "21",
}
WIRE = (
    "eyJhbW91bnQiOiIyMSIsImN1cnJlbmN5Ijoic2F0IiwibWV0aG9kRGV0YWlscyI6eyJpbnZvaWNlIjoibG5iY3J0MSIsIm5ldHdvcmsiOiJyZWd0"
    "ZXN0IiwicGF5bWVudEhhc2giOiIwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAw"
    "In19"
)
EXPIRES = "2026-01-01T00:00:00Z"
PLAIN = PaymentChallenge("", "api.test", "lightning", "charge", WIRE)
FULL = PLAIN._replace(
    expires=EXPIRES,
    digest="sha-256=abc",
    opaque=request_text({"k": "v"}),
    header=PAYMENT_AUTHORIZATION,
    description="Weather, one call",
)


def issued(challenge: PaymentChallenge = FULL, key: bytes = KEY) -> PaymentChallenge:
    return challenge._replace(id=bound_id(key, challenge))


@pytest.mark.parametrize(
    ("names", "bound"),
    [
        ((), "fn2Q3P49FHS3rZCYj020nfwRZenuiHwE91dlqgomwlc"),
        (("expires",), "bkrefvqEdKYxES4vVosEvPQl-uXfbTAvnbojQT0nsPE"),
        (("expires", "opaque"), "SQkPjDy3m9JSa4Kb_j96oS3vDY4PGugynLKUNT9mfbE"),
        (("header",), "aOos4fJaylJXsMx1i1EM4axBaOTxnOkiFLt-tmp4wVU"),
        (("expires", "digest", "opaque", "header"), "Bd7FNHW8NjaHESYwAYpNABNVHZvUK8jvKft_M4sDryw"),
    ],
)
def test_an_id_is_the_one_that_the_other_libraries_make(names: tuple[str, ...], bound: str) -> None:
    challenge = PLAIN._replace(**{name: getattr(FULL, name) for name in names})
    assert bound_id(KEY, challenge) == bound
    assert bound_id(KEY, challenge._replace(description="any", id="any")) == bound
    assert is_bound([KEY], challenge._replace(id=bound))


def test_a_request_has_the_bytes_of_the_other_libraries() -> None:
    assert request_text(REQUEST) == WIRE
    assert read_request(WIRE) == REQUEST


slots = st.text(st.sampled_from('|ab"\\'), max_size=3)
any_challenge = st.builds(
    PaymentChallenge, slots, slots, slots, slots, slots, slots, slots, slots, slots, st.sampled_from(["", "a", "|"])
)


@given(any_challenge, any_challenge)
def test_G08_no_two_challenges_have_the_same_hmac_input(one: PaymentChallenge, other: PaymentChallenge) -> None:
    """Over all slots, absent ones too; ``id`` and ``description`` are not part of what is bound."""
    same = one._replace(id="", description="") == other._replace(id="", description="")
    try:
        first, second = bound_id(KEY, one), bound_id(KEY, other)
    except ValueError:
        assert any("|" in slot for made in (one, other) for slot in made)
        return
    assert (first == second) == same


@given(any_challenge)
def test_G08_a_separator_in_any_slot_is_refused(challenge: PaymentChallenge) -> None:
    covered = challenge._replace(id="", description="")
    if any("|" in slot for slot in covered):
        with pytest.raises(ValueError, match="hold no"):
            bound_id(KEY, challenge)
        assert not is_bound([KEY], challenge)
    else:
        assert is_bound([KEY], issued(challenge))


def test_G08_a_parameter_that_slips_into_the_next_slot_is_another_challenge() -> None:
    made = issued(PLAIN._replace(opaque="x"))
    assert is_bound([KEY], made)
    for moved in ({"digest": "x"}, {"expires": "x"}, {"header": "x"}):
        assert not is_bound([KEY], made._replace(opaque="", **moved))


@pytest.mark.parametrize("name", ["realm", "method", "intent", "request", "expires", "digest", "opaque", "header"])
def test_A03_every_parameter_is_bound(name: str) -> None:
    made = issued()
    assert is_bound([KEY], made)
    for other in ("", getattr(made, name) + "x", getattr(made, name)[:-1]):
        assert not is_bound([KEY], made._replace(**{name: other}))


def test_G09_either_secret_is_good_while_there_are_two() -> None:
    old, new = b"o" * 32, b"n" * 32
    for key in (old, new):
        assert is_bound([new, old], issued(key=key))
    assert not is_bound([new], issued(key=old))
    assert not is_bound([], issued(key=old))
    for wrong in ("", "é", "\ud800", issued().id + "="):
        assert not is_bound([KEY], issued()._replace(id=wrong))


def test_a_challenge_is_read_as_it_was_written() -> None:
    for challenge in (issued(), issued(PLAIN), issued(PLAIN._replace(realm='a "realm", with \\ in it'))):
        assert read_challenges([challenge_header(challenge).decode()]) == [challenge]


@given(st.text(max_size=40), st.text(max_size=20))
def test_A14_no_text_splits_the_header(description: str, realm: str) -> None:
    made = issued(PLAIN._replace(realm="r", description=description))
    line = challenge_header(made).decode("ascii")
    assert line.isprintable()
    read = read_challenges([line])
    assert [challenge._replace(description="") for challenge in read] == [made._replace(description="")]
    assert '"' not in read[0].description
    assert "\\" not in read[0].description
    try:
        line = challenge_header(PLAIN._replace(id="i", realm=realm or "r")).decode("ascii")
    except ValueError:
        assert not (realm.isascii() and realm.isprintable())
        return
    assert [challenge.realm for challenge in read_challenges([line])] == [realm or "r"]


def test_A14_a_description_stays_readable() -> None:
    assert plain('He said “hi” — "twice"\r\n\\o/') == "He said 'hi' - 'twice' /o/"
    assert plain("naïve 🚀\x00") == "na?ve ??"
    assert plain("\r\n") == ""
    assert quoted('a"\\') == r'"a\"\\"'


def test_the_lines_of_the_other_libraries_are_read() -> None:
    """Made by mppx 0.11.0 with the same secret; it writes what is no Latin-1 as \\uXXXX."""
    line = (
        'Payment id="vvlnxpAWo3cE-G_eA-9uXWVfrLtMuJiJp96uD36wwGA", realm="api.test", method="evm", intent="charge", '
        'request="eyJhbW91bnQiOiIxMDAwIiwiY3VycmVuY3kiOiIweDgzMzU4OWZDRDZlRGI2RTA4ZjRjN0MzMkQ0ZjcxYjU0YmRBMDI5MTMiLCJt'
        "ZXRob2REZXRhaWxzIjp7ImNoYWluSWQiOjg0NTMsImNyZWRlbnRpYWxUeXBlcyI6WyJhdXRob3JpemF0aW9uIl0sImRlY2ltYWxzIjo2fSwicm"
        'VjaXBpZW50IjoiMHgwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMEMwRmZlRTAwIn0", description="em \\u2014 '
        '\\"dash\\" \\\\", expires="2026-01-01T00:00:00Z", header="Payment-Authorization", opaque="eyJrIjoidiJ9"'
    )
    (made,) = read_challenges([line])
    assert made.description == 'em — "dash" \\'
    assert is_bound([KEY], made)
    request = read_request(made.request)
    currency, recipient = "0x833589fCD6eDb6E08f4c7C32D4f71b54bdA02913", "0x00000000000000000000000000000000C0FfeE00"
    assert payment_methods.evm_request(1000, currency, recipient, 8453, 6) == request
    assert request_text(request) == made.request
    assert payment_methods.read_evm_request(request) == (1000, currency, recipient, 8453, False)
    assert payment_auth.expiry_of(made) == 1767225600
    assert payment_auth.rfc3339(1767225600) == made.expires
    assert payment_auth.expiry_of(PLAIN) is None


GOOD = 'Payment id="i", realm="r", method="m", intent="charge", request="e30"'


@pytest.mark.parametrize(
    ("values", "count"),
    [
        ([GOOD], 1),
        ([GOOD, GOOD], 2),
        ([GOOD + ", " + GOOD], 2),
        ([f'Basic realm="Payment id=", {GOOD}, Bearer'], 1),
        ([GOOD.replace("Payment", "pAYMENT").replace("id=", "ID = ").replace(", ", " ,,\t")], 1),
        ([GOOD.replace('"', "")], 1),
        ([GOOD + ', unheard="of", __proto__="x", constructor=y'], 1),
        ([GOOD + ', header="payment-authorization"'], 1),
        ([GOOD + ', header="X-Payment"'], 0),
        ([GOOD + ', header="Authorization"'], 0),
        ([GOOD + ', header=""'], 0),
        ([GOOD + ', id="i"'], 0),
        ([GOOD + ', Realm="r"'], 0),
        ([GOOD + ", unheard=1, UNHEARD=1", GOOD], 1),
        ([GOOD + ", unheard=1, unheard=1, " + GOOD], 1),
        ([GOOD.replace('id="i"', 'id=""')], 0),
        ([GOOD.replace('method="m", ', "")], 0),
        ([GOOD.replace('method="m"', 'method="M"')], 0),
        ([GOOD.replace('method="m"', 'method="m n"')], 0),
        ([GOOD.replace('id="i",', 'id="i"')], 1),
        ([GOOD.replace('id="i",', "id=i")], 0),
        ([GOOD + ", " + ", ".join(f'a{n}="b"' for n in range(250))], 1),
        ([GOOD + ", " + ", ".join(f'a{n}="b"' for n in range(251))], 0),
        ([", ".join(["Basic x=y"] * 125 + [GOOD])], 1),
        ([", ".join(["Basic x=y"] * 126 + [GOOD])], 0),
        ([GOOD + ', oops="', GOOD], 2),
        ([GOOD + ', oops="\x00"'], 1),
        (["Payment"], 0),
        (["Payment abc=="], 0),
        ([""], 0),
        ([], 0),
        (["\u0660=\u0660"], 0),
        (["x" * (HEADER_MAX + 1), GOOD], 1),
        ([GOOD + " " * HEADER_MAX], 0),
        ([GOOD] * (VALUES_MAX + 9), VALUES_MAX),
    ],
)
def test_G10_only_usable_challenges_are_given_back(values: list[str], count: int) -> None:
    assert len(read_challenges(values)) == count


def test_G10_the_strict_reader_says_what_is_wrong() -> None:
    (challenge,) = parse_challenges('Payment a="1", A="2"')
    assert challenge.pairs == (("a", "1"), ("a", "2"))
    with pytest.raises(ValueError, match="twice"):
        challenge.params()
    assert [made.scheme for made in parse_challenges("Negotiate, Basic abc==, Digest a=b , c = d")] == [
        "negotiate",
        "basic",
        "digest",
    ]
    for value in ('Payment a="', "=", "a=b", "Payment a b", "Basic abc== x", 'Payment a="b" c', "(", "x" * 20_000):
        with pytest.raises(ValueError, match="not an authentication challenge"):
            parse_challenges(value)


def test_a_credential_is_read_as_it_was_written() -> None:
    for challenge in (issued(), issued(PLAIN)):
        sent = credential_header(challenge, {"preimage": "ab" * 32}, "did:pkh:x")
        assert sent.startswith("Payment ")
        read = parse_credential(sent)
        assert read == (challenge, {"preimage": "ab" * 32}, "did:pkh:x")
        assert parse_credential(sent.removeprefix("Payment ")) == read
        assert is_bound([KEY], read.challenge)
    echo = read_request(credential_header(issued(PLAIN), {}).removeprefix("Payment "))["challenge"]
    assert sorted(echo) == ["id", "intent", "method", "realm", "request"]


def test_the_credentials_of_the_other_libraries_are_read() -> None:
    """Made by pympp 0.16.0 with the same secret."""
    read = parse_credential(
        "Payment eyJjaGFsbGVuZ2UiOnsiZGVzY3JpcHRpb24iOiJlbSBcdTIwMTQgXCJkYXNoXCIgXFwiLCJleHBpcmVzIjoiMjAyNi0wMS0wMVQwMD"
        "owMDowMFoiLCJpZCI6IkZfTlprVnJDZkNudXdLWmVKSy1IbGpSNjN2Ykh1R1N1ZWwxOXN1R2gxQ3ciLCJpbnRlbnQiOiJjaGFyZ2UiLCJtZXRob2"
        "QiOiJldm0iLCJvcGFxdWUiOiJleUpySWpvaWRpSjkiLCJyZWFsbSI6ImFwaS50ZXN0IiwicmVxdWVzdCI6ImV5SmhiVzkxYm5RaU9pSXhNREF3S"
        "W4wIn0sInBheWxvYWQiOnsidHlwZSI6ImF1dGhvcml6YXRpb24ifSwic291cmNlIjoiZGlkOngifQ"
    )
    assert is_bound([KEY], read.challenge)
    assert (read.payload, read.source) == ({"type": "authorization"}, "did:x")
    assert read_request(read.challenge.request) == {"amount": "1000"}


def credential(**changes: Any) -> str:
    """A credential with changes in its challenge, or in the whole; None takes a key away."""
    fields: Json = {"challenge": {**issued()._asdict()}, "payload": {}}
    for name, value in changes.items():
        inside = fields if name in ("challenge", "payload", "source") else fields["challenge"]
        inside[name] = value
        if value is ...:
            del inside[name]
    return b64url(dump_json(fields))


@pytest.mark.parametrize(
    "changes",
    [
        {"challenge": ...},
        {"challenge": "id"},
        {"challenge": []},
        {"payload": ...},
        {"payload": "x"},
        {"payload": None},
        {"source": 1},
        {"id": ...},
        {"id": None},
        {"id": ""},
        {"id": 1},
        {"realm": ...},
        {"method": ["m"]},
        {"intent": {}},
        {"request": REQUEST},
        {"request": ""},
        {"opaque": {"k": "v"}},
        {"expires": 1},
        {"header": False},
    ],
)
def test_A12_a_credential_with_a_fault_is_refused(changes: Json) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  # each has words of its own
        parse_credential(credential(**changes))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Payment ",
        "Payment",
        "Bearer e30",
        b64url(b"[]"),
        b64url(b'{"challenge":{},"challenge":{}}'),
        b64url(b"{}") + "=",
        "*" + credential(),
        credential()[:-1],
        "A" * (HEADER_MAX + 1),
        "Payment " + "A" * (HEADER_MAX + 1),
    ],
)
def test_A12_what_is_no_credential_is_refused(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  # each has words of its own
        parse_credential(text)


def test_absent_and_empty_are_the_same() -> None:
    """G08: the HMAC does not tell them apart, so neither does the reader."""
    for value in (..., None, ""):
        read = parse_credential(credential(expires=value, digest=value, opaque=value, header=value, description=value))
        assert read.challenge == issued()._replace(expires="", digest="", opaque="", header="", description="")
    assert parse_credential(credential(unheard="of", source=None)).source == ""


def test_a_receipt_is_read_as_it_was_written() -> None:
    made = receipt_header("lightning", "ab" * 32, 1767225600, "id", externalId="x").decode()
    read = read_receipt(made)
    assert read[:4] == ("lightning", "ab" * 32, EXPIRES, "id")
    assert read.fields["externalId"] == "x"
    assert read_receipt(receipt_header("evm", "0x1", 0).decode()).challenge_id == ""
    mppx = (
        "eyJtZXRob2QiOiJldm0iLCJyZWZlcmVuY2UiOiIweGFiYyIsInN0YXR1cyI6InN1Y2Nlc3MiLCJ0aW1lc3RhbXAiOiIyMDI2LTAxLTAxVDAwOjAw"
        "OjAwLjAwMFoifQ"
    )
    assert read_receipt(mppx)[:3] == ("evm", "0xabc", "2026-01-01T00:00:00.000Z")


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"status": "failed", "method": "m", "reference": "r"},
        {"status": True, "method": "m", "reference": "r"},
        {"status": "success", "method": "m"},
        {"status": "success", "method": "", "reference": "r"},
        {"status": "success", "method": "m", "reference": 1},
        {"status": "success", "method": "m", "reference": "r", "timestamp": 1},
    ],
)
def test_I05_a_receipt_without_success_is_no_answer(fields: Json) -> None:
    with pytest.raises(ValueError, match=r"receipt|missing"):
        read_receipt(b64url(dump_json(fields)))


def test_a_request_of_another_server_need_not_be_canonical() -> None:
    for text in (b64encode(b'{ "b":1,"a":"x"}'), b64encode(b'{ "b":1,"a":"x"}').rstrip("=")):
        assert read_request(text) == {"a": "x", "b": 1}
    for text in ("", b64url(b"1"), b64url(b'{"a":1.5}'), "A" * (HEADER_MAX + 1)):
        with pytest.raises(ValueError):  # noqa: PT011  # each has words of its own
            read_request(text)


def test_canonical_json_is_that_of_the_rfc() -> None:
    made = canonical_json({"\u20ac": 1, "\r": "\x7f", "\ufb33": [True, None], "1": '\u000f\n"\\/', "\U0001f600": -1})
    assert made.decode() == '{"\\r":"\x7f","1":"\\u000f\\n\\"\\\\/","€":1,"😀":-1,"\ufb33":[true,null]}'
    for value in (1.5, float("nan"), 2**53, -(2**53), {1: "a"}, "\ud800", {"\ud800": 1}, b"a", {"a": {1}}):
        with pytest.raises(ValueError):  # noqa: PT011  # each has words of its own
            canonical_json(value)


OFFERED = [("lightning", "charge"), ("evm", "charge"), ("solana", "charge")]


@pytest.mark.parametrize(
    ("accept", "order"),
    [
        (None, [0, 1, 2]),
        ("", [0, 1, 2]),
        ("*/*", [0, 1, 2]),
        ("evm/charge", [1]),
        ("EVM/Charge", [1]),
        ("evm/charge, lightning/charge;q=0.5", [1, 0]),
        ("solana/*;q=0.9,evm/*; q=1.0 ,lightning/charge ;q=0.95", [1, 0, 2]),
        ("*/charge;q=0.5, evm/charge", [1, 0, 2]),
        ("*/*, lightning/charge;q=0", [1, 2]),
        ("*/*;q=0, solana/*;q=0.1", [2]),
        ("evm/*;q=0.2, evm/charge;q=0.8, */*;q=0.5", [1, 0, 2]),
        ("*/charge;q=0.9, lightning/*;q=0.1", [1, 2, 0]),
        ("tempo/charge", [0, 1, 2]),
        ("tempo/*, evm/session", [0, 1, 2]),
        ("evm/charge;q=0", [0, 1, 2]),
        ("evm", [0, 1, 2]),
        ("evm/charge;q=2", [0, 1, 2]),
        ("evm/charge;q=0.0001", [0, 1, 2]),
        ("evm/charge;q=٠", [0, 1, 2]),
        ("evm/charge;level=1", [0, 1, 2]),
        ("evm/charge evm/charge", [0, 1, 2]),
        ("evm/charge, ,", [1]),
        ("evm/charge," * 70, [0, 1, 2]),
    ],
)
def test_a_client_says_what_it_takes(accept: str | None, order: list[int]) -> None:
    assert wanted(accept, OFFERED) == order
    assert wanted(accept, []) == []


def test_the_problem_types_are_those_of_the_draft() -> None:
    assert len(PROBLEMS) == 11
    assert PROBLEMS["payment-expired"] == "https://paymentauth.org/problems/payment-expired"


@pytest.mark.parametrize("network", [BITCOIN, TESTNET, SIGNET, REGTEST])
def test_a_lightning_request_is_read_as_it_was_written(network: str) -> None:
    made = payment_methods.lightning_request(21, "lnbcrt1", "00" * 32, network)
    assert payment_methods.read_lightning_request(made) == (21, "lnbcrt1", "00" * 32, network)
    assert network != REGTEST or made == REQUEST
    bare = {"amount": "1", "currency": "sat", "methodDetails": {"invoice": "i"}}
    assert payment_methods.read_lightning_request(bare) == (1, "i", "", "")


@pytest.mark.parametrize(
    "changes",
    [
        {"amount": 21},
        {"amount": "2_1"},
        {"amount": "0x15"},
        {"amount": "-1"},
        {"currency": "usd"},
        {"currency": ...},
        {"methodDetails": ...},
        {"methodDetails": {}},
        {"methodDetails": {"invoice": ""}},
        {"methodDetails": {"invoice": 1}},
        {"methodDetails": {"invoice": "i", "paymentHash": "AB" * 32}},
        {"methodDetails": {"invoice": "i", "paymentHash": 1}},
        {"methodDetails": {"invoice": "i", "network": "liquid"}},
        {"methodDetails": {"invoice": "i", "network": ["mainnet"]}},
    ],
)
def test_a_lightning_request_with_a_fault_is_refused(changes: Json) -> None:
    fields = {key: value for key, value in {**REQUEST, **changes}.items() if value is not ...}
    with pytest.raises(ValueError):  # noqa: PT011  # each has words of its own
        payment_methods.read_lightning_request(fields)


def test_a_preimage_is_64_digits_in_lower_case() -> None:
    assert payment_methods.read_preimage({"preimage": "ab" * 32}) == b"\xab" * 32
    for value in (None, "", "AB" * 32, "ab" * 31, "ab" * 33, "ab" * 32 + "\n", "٣" * 64, 7):
        with pytest.raises(ValueError, match="preimage"):
            payment_methods.read_preimage({"preimage": value})


def test_the_nonce_of_an_evm_payment_is_the_challenges() -> None:
    """The first made by mppx 0.11.0 (and the draft's rule), the second by pympp 0.16.0."""
    assert payment_methods.evm_nonces("bkrefvqEdKYxES4vVosEvPQl-uXfbTAvnbojQT0nsPE", "api.test", keccak) == (
        "0x9864b30634976daefa593ebf33357749155326452ff822c305f0045f33e95087",
        "0x8d72a3e9493ef6bc418b24e1b0d7717f5e906057f66fb7a7ddd96f1a4b2cd44e",
    )
    assert payment_methods.evm_source(8453, "0xAbC") == "did:pkh:eip155:8453:0xAbC"


EVM_PAYLOAD: Json = {
    "type": "authorization",
    "from": "0x" + "Aa" * 20,
    "to": "0x" + "bB" * 20,
    "value": "1000",
    "validAfter": "0",
    "validBefore": "1767225600",
    "nonce": "0x" + "cc" * 32,
    "signature": "0x" + "dd" * 65,
}


def test_an_evm_payment_is_that_of_x402() -> None:
    signed = {name: EVM_PAYLOAD[name] for name in ("from", "to", "value", "validAfter", "validBefore", "nonce")}
    made = payment_methods.read_evm_payload(EVM_PAYLOAD)
    assert made == {"authorization": signed, "signature": EVM_PAYLOAD["signature"]}


@pytest.mark.parametrize(
    "changes",
    [
        {"type": "permit2"},
        {"type": ...},
        {"from": "0x" + "a" * 39},
        {"to": "bB" * 20},
        {"to": ...},
        {"value": 1000},
        {"value": "01"},
        {"value": str(2**256)},
        {"validAfter": ...},
        {"validBefore": "1e9"},
        {"nonce": "0x" + "cc" * 31},
        {"signature": ""},
        {"signature": None},
    ],
)
def test_an_evm_payment_with_a_fault_is_refused(changes: Json) -> None:
    fields = {key: value for key, value in {**EVM_PAYLOAD, **changes}.items() if value is not ...}
    with pytest.raises(ValueError):  # noqa: PT011  # each has words of its own
        payment_methods.read_evm_payload(fields)


def _with(request: Json, changes: Json) -> Json:
    """A copy of a request with changes; those of its details have a dot before their names."""
    made: Json = {**request, "methodDetails": {**request["methodDetails"]}}
    for name, value in changes.items():
        inside = made["methodDetails"] if name.startswith(".") else made
        inside[name.lstrip(".")] = value
        if value is ...:
            del inside[name.lstrip(".")]
    return made


EVM = payment_methods.evm_request(1000, "0x" + "aa" * 20, "0x" + "bb" * 20, 8453, 6)


@pytest.mark.parametrize(
    "changes",
    [
        {"amount": ...},
        {"currency": "USDC"},
        {"recipient": ""},
        {"methodDetails": "x"},
        {".chainId": "8453"},
        {".chainId": True},
        {".chainId": 0},
        {".chainId": 2**53},
        {".credentialTypes": ...},
        {".credentialTypes": "authorization"},
        {".credentialTypes": ["permit2", "hash"]},
    ],
)
def test_an_evm_request_that_we_can_not_pay_is_refused(changes: Json) -> None:
    assert payment_methods.read_evm_request(_with(EVM, {".splits": [{}]})).splits
    with pytest.raises(ValueError):  # noqa: PT011  # each has words of its own
        payment_methods.read_evm_request(_with(EVM, changes) if "methodDetails" not in changes else {**EVM, **changes})


MINT, OWNER, FEES = "EPjFWdd5AufqSSqeM2qN1xzybapC8G4wEGGkZwyTDt1v", "7" * 43, "9" * 44
SOLANA = payment_methods.solana_request(
    1000,
    MINT,
    OWNER,
    network="devnet",
    decimals=6,
    token_program=OWNER,
    fee_payer=FEES,
    recent_blockhash=FEES,
    external_id="order-1",
)


def test_a_solana_request_is_read_as_it_was_written() -> None:
    read = payment_methods.read_solana_request(SOLANA)
    assert read == (1000, MINT, OWNER, "devnet", 6, OWNER, FEES, FEES, "order-1", False)
    bare = payment_methods.solana_request(1, MINT, OWNER, network="mainnet", decimals=6, token_program=OWNER)
    for changes in ({}, {".network": "mainnet-beta"}, {".network": ...}):
        assert payment_methods.read_solana_request(_with(bare, changes)).network == "mainnet"
    unsaid = _with(bare, {".tokenProgram": ..., ".splits": [{}]})
    assert payment_methods.read_solana_request(unsaid) == (1, MINT, OWNER, "mainnet", 6, "", "", "", "", True)


@pytest.mark.parametrize(
    "changes",
    [
        {"currency": "sol"},
        {"currency": "USDC"},
        {"recipient": ...},
        {"amount": "1.5"},
        {"externalId": 1},
        {"externalId": "x" * 567},
        {".network": "testnet"},
        {".network": ["devnet"]},
        {".decimals": ...},
        {".decimals": 10},
        {".decimals": True},
        {".confidential": True},
        {".feePayer": ...},
        {".feePayer": "yes"},
        {".feePayerKey": ...},
        {".recentBlockhash": ""},
        {".tokenProgram": None},
    ],
)
def test_a_solana_request_that_we_can_not_pay_is_refused(changes: Json) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  # each has words of its own
        payment_methods.read_solana_request(_with(SOLANA, changes))


def test_a_solana_payment_is_that_of_x402() -> None:
    made = payment_methods.read_solana_payload({"type": "transaction", "transaction": "AQID"})
    assert made == {"transaction": "AQID"}
    for payload in ({"type": "signature", "signature": "x"}, {"type": "transaction"}, {"transaction": "AQID"}):
        with pytest.raises(ValueError, match="transaction"):
            payment_methods.read_solana_payload(payload)
