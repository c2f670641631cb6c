"""Every parser of a header: what comes from outside is accepted, or refused with its one documented error, at once."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.wallet_proofs import evm_wallet, header, katana, solana_wallet, venice
from x402kit.errors import HeaderTooLarge, MalformedPayment
from x402kit.model import HEADER_MAX, Json
from x402kit.protocols import payment_auth, payment_methods, siwx, x402
from x402kit.protocols.accept_payment import wanted
from x402kit.protocols.auth_params import parse_challenges
from x402kit.protocols.authorization import find_authorization
from x402kit.protocols.bolt11 import decode
from x402kit.protocols.caveats import CaveatRefused, check_caveats, standard_caveats
from x402kit.protocols.encoding import b64encode, b64url, dump_json
from x402kit.protocols.l402 import challenge_header, identifier, parse_credential, read_challenge, token_text
from x402kit.protocols.macaroon import mint, parse, serialize

INVOICE = (
    "lnbc25m1pvjluezpp5qqqsyqcyq5rqwzqfqqqsyqcyq5rqwzqfqqqsyqcyq5rqwzqfqypqdq5vdhkven9v5sxyetpdeessp5zyg3zyg3zyg3zyg3zyg"
    "3zyg3zyg3zyg3zyg3zyg3zyg3zyg3zygs9q5sqqqqqqqqqqqqqqqpqsq67gye39hfg3zd8rgc80k32tvy9xk2xunwm5lzexnvpx6fd77en8qaq424dx"
    "gt56cag2dpt359k3ssyhetktkpqh24jqnjyw6uqd08sgptq44qu"
)
CAVEATS = standard_caveats(service="svc", route="GET /", amount=1000, valid_until=2**31, request="ab")
TOKEN = mint(b"root", identifier(b"h" * 32, b"t" * 32), "lsat", CAVEATS)
TEXT = token_text(TOKEN)
CHALLENGE = payment_auth.PaymentChallenge(
    "id", "api.test", "lightning", "charge", "e30", "2026-01-01T00:00:00Z", "sha-256=a", "words", "e30"
)
CREDENTIAL = payment_auth.credential_header(CHALLENGE, {"preimage": "ab" * 32}, "did:pkh:x")
RECEIPT = payment_auth.receipt_header("lightning", "ab" * 32, 1_767_225_600, "id").decode()
LINE = challenge_header(TEXT, INVOICE).decode() + ", " + payment_auth.challenge_header(CHALLENGE).decode()
X402: Json = {
    "x402Version": 2,
    "accepts": [
        {
            "scheme": "exact",
            "network": "eip155:8453",
            "amount": "1",
            "asset": "0x1",
            "payTo": "0x2",
            "maxTimeoutSeconds": 60,
        }
    ],
}
PAYMENT: Json = {"x402Version": 2, "accepted": X402["accepts"][0], "payload": {"signature": "0x"}}
PROOFS = [header(venice(evm_wallet(b"1" * 32))), header(katana(solana_wallet(b"2" * 32)))]


def _requests(text: str) -> None:
    request = payment_auth.read_request(text)
    for read in (
        payment_methods.read_lightning_request,
        payment_methods.read_evm_request,
        payment_methods.read_solana_request,
        payment_methods.read_preimage,
        payment_methods.read_evm_payload,
        payment_methods.read_solana_payload,
    ):
        with contextlib.suppress(ValueError):
            read(request)


def _allowed(data: bytes) -> None:
    check_caveats(data.split(b"\n"), service="svc", route="GET /", request="ab", amount=1000, now=1, preimage=b"p" * 32)


def _x402_payment(text: str) -> object:
    return x402.parse_payment_payload(x402.decode_header(text))


def _x402_challenge(text: str) -> object:
    return x402.parse_payment_required(x402.decode_header(text))


def _x402_receipt(text: str) -> object:
    return x402.parse_settlement_response(x402.decode_header(text))


def _authorization(data: bytes) -> object:
    return find_authorization([(b"authorization", data)])


def _payment_authorization(data: bytes) -> object:
    return find_authorization([(b"payment-authorization", data), (b"authorization", b"Bearer x")])


def _l402_challenge(text: str) -> object:
    return read_challenge([text, text])


def _payment_challenges(text: str) -> object:
    return payment_auth.read_challenges([text, text])


def _auth_params(text: str) -> object:
    return [made.params() for made in parse_challenges(text)]


def _accept_payment(text: str) -> object:
    return wanted(text, [("lightning", "charge"), ("evm", "charge")])


class Parser(NamedTuple):
    """A parser of bytes or of text, the one error it may raise, and values that it accepts."""

    call: Callable[[Any], object]
    error: type[Exception] | tuple[type[Exception], ...]
    seeds: list[bytes]
    text: bool = True


REQUESTS = [
    payment_methods.lightning_request(1, INVOICE, "ab" * 32, "bip122:0f9188f13cb7b2c71f2a335e3a4fc328"),
    payment_methods.evm_request(1, "0x" + "a" * 40, "0x" + "b" * 40, 8453, 6),
    payment_methods.solana_request(1, "7" * 43, "9" * 43, network="devnet", decimals=6, token_program="7" * 43),
]
PARSERS: dict[str, Parser] = {
    "x402 payment": Parser(
        _x402_payment,
        ValueError,
        [x402.encode_header(PAYMENT).encode()],
    ),
    "x402 challenge": Parser(
        _x402_challenge,
        ValueError,
        [x402.encode_header(X402).encode()],
    ),
    "x402 receipt": Parser(
        _x402_receipt,
        ValueError,
        [x402.encode_header({"success": True, "transaction": "0x", "network": "base"}).encode()],
    ),
    "wallet proof": Parser(siwx.parse_proof, MalformedPayment, PROOFS, text=False),
    "authorization": Parser(
        _authorization,
        (MalformedPayment, HeaderTooLarge),
        [b"L402 " + TEXT.encode() + b":" + b"ab" * 32, CREDENTIAL.encode(), b'Digest a="b", Bearer x'],
        text=False,
    ),
    "payment-authorization": Parser(
        _payment_authorization,
        (MalformedPayment, HeaderTooLarge),
        [CREDENTIAL.encode()],
        text=False,
    ),
    "l402 credential": Parser(parse_credential, ValueError, [f"L402 {TEXT}:{'ab' * 32}".encode()]),
    "l402 challenge": Parser(_l402_challenge, (), [LINE.encode()]),
    "macaroon": Parser(parse, ValueError, [serialize(TOKEN)], text=False),
    "caveats": Parser(_allowed, CaveatRefused, [b"\n".join(CAVEATS)], text=False),
    "payment credential": Parser(payment_auth.parse_credential, ValueError, [CREDENTIAL.encode()]),
    "payment challenges": Parser(_payment_challenges, (), [LINE.encode()]),
    "payment request": Parser(_requests, ValueError, [payment_auth.request_text(made).encode() for made in REQUESTS]),
    "payment receipt": Parser(payment_auth.read_receipt, ValueError, [RECEIPT.encode()]),
    "auth-params": Parser(_auth_params, ValueError, [LINE.encode()]),
    "accept-payment": Parser(_accept_payment, (), [b"evm/*;q=0.5, lightning/charge"]),
    "invoice": Parser(decode, ValueError, [INVOICE.encode()]),
}
BASE64 = ("x402 payment", "x402 challenge", "x402 receipt", "payment credential", "payment request", "payment receipt")


def run(parser: Parser, data: bytes) -> None:
    """Accepted, or the one documented error; any other comes through and fails the test."""
    with contextlib.suppress(*(parser.error if isinstance(parser.error, tuple) else (parser.error,))):
        parser.call(data.decode("latin-1") if parser.text else data)


@st.composite
def mutated(draw: st.DrawFn, seeds: list[bytes]) -> bytes:
    """A good value with a few of its parts taken out, doubled, moved, or overwritten."""
    data = draw(st.sampled_from(seeds))
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(data)))
        end = draw(st.integers(start, min(len(data), start + 40)))
        put = draw(st.sampled_from([b"", data[start:end] * 2, data[:start][-9:]]) | st.binary(max_size=8))
        data = data[:start] + put + data[end:]
    return data


@pytest.mark.parametrize("name", PARSERS)
def test_the_seeds_are_good(name: str) -> None:
    parser = PARSERS[name]
    for seed in parser.seeds:
        parser.call(seed.decode("latin-1") if parser.text else seed)


@pytest.mark.parametrize("name", PARSERS)
@given(st.data())
def test_A12_anything_is_accepted_or_is_the_one_documented_error(name: str, data: st.DataObject) -> None:
    parser = PARSERS[name]
    run(parser, data.draw(st.binary(max_size=200) | mutated(parser.seeds)))


@pytest.mark.parametrize("name", BASE64)
@settings(max_examples=50)
@given(st.data())
def test_A12_and_so_is_anything_inside_the_base64(name: str, data: st.DataObject) -> None:
    seeds = [dump_json(made) for made in (X402, PAYMENT, *REQUESTS, {"challenge": CHALLENGE._asdict(), "payload": {}})]
    inside = data.draw(st.binary(max_size=200) | mutated(seeds))
    for text in (b64encode(inside), b64url(inside)):
        run(PARSERS[name], text.encode())


def _filled(unit: bytes, before: bytes = b"", after: bytes = b"") -> bytes:
    return before + unit * ((HEADER_MAX - len(before) - len(after)) // len(unit)) + after


HOSTILE: list[bytes] = [
    _filled(b"A"),
    _filled(b" "),
    _filled(b","),
    _filled(b"="),
    _filled(b'"'),
    _filled(b"\\"),
    _filled(b'\\"', b'Payment a="'),
    _filled(b"\\u0041", b'Payment a="', b'"'),
    _filled(b"a", b'Payment a="'),
    _filled(b"a=b,", b"Payment "),
    _filled(b'a="b" ,', b"Payment "),
    _filled(b"a ,", b"Payment "),
    _filled(b"Payment ,"),
    _filled(b"Payment a=b,"),
    _filled(b"Payment "),
    _filled(b"a= ", b"Payment "),
    _filled(b"\t ,", b"Bearer ", b"x"),
    _filled(b'"', b"Bearer ", b", Payment x"),
    _filled(b"L402 "),
    _filled(b",", b"L402 " + TEXT.encode(), b":" + b"ab" * 32),
    _filled(b"1", b"lnbc"),
    _filled(b"9", b"lnbc", b"n1"),
    _filled(b"q", b"lnbc1"),
    _filled(b"*/*;q=0.5,"),
    _filled(b"*/*" + b" " * 100),
    _filled(b"\x02\x01a\x00", b"\x02"),
    _filled(b"route=GET /\n"),
    *(
        b64url(inside).encode()[:HEADER_MAX]
        for inside in (
            b"[" * 12_285,
            b'{"a":' * 2_000,
            b'{"challenge":{"id":"' + b"\\u0000" * 2_000 + b'"}}',
            b'{"payload":' + b"1" * 12_000 + b"}",
            b"{" + b",".join(b'"%d":0' % n for n in range(1_200)) + b"}",
        )
    ),
]


@pytest.mark.parametrize("name", PARSERS)
def test_K01_the_worst_header_is_answered_within_20_ms(name: str) -> None:
    parser = PARSERS[name]
    for data in HOSTILE:
        assert len(data) <= HEADER_MAX

        def seconds(data: bytes = data) -> float:
            started = time.process_time()
            run(parser, data)
            return time.process_time() - started

        if seconds() > 0.02:  # then it was not the machine
            assert min(seconds() for _ in range(5)) < 0.02, data[:40]


@pytest.mark.parametrize("name", PARSERS)
def test_K01_what_is_over_the_limit_is_answered_before_it_is_decoded(name: str) -> None:
    parser = PARSERS[name]
    huge = b"A" * (4 * 2**20)

    def seconds() -> float:
        started = time.process_time()
        run(parser, huge)
        return time.process_time() - started

    assert min(seconds() for _ in range(3)) < 0.05
