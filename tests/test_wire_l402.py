"""L402 on the wire: a token is read in every spelling, its caveats only narrow, and a request carries one."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from x402kit.errors import HeaderTooLarge, MalformedPayment
from x402kit.model import HEADER_MAX
from x402kit.protocols.auth_params import parse_challenges, quoted
from x402kit.protocols.authorization import find_authorization
from x402kit.protocols.caveats import CaveatRefused, check_caveats, standard_caveats
from x402kit.protocols.l402 import (
    Challenge,
    challenge_header,
    credential_header,
    identifier,
    parse_credential,
    read_challenge,
    read_identifier,
    token_text,
)
from x402kit.protocols.macaroon import is_good, mint, serialize

ROOT = bytes(range(32))
HASH, TOKEN_ID = b"\x11" * 32, b"\xfb" * 32
PREIMAGE = b"\xab" * 32
NOW = 1_700_000_000
CAVEATS = standard_caveats(service="svc", route="GET /wéather", amount=21_000, valid_until=NOW + 60, request="ab" * 32)
TOKEN = mint(ROOT, identifier(HASH, TOKEN_ID), "lsat", CAVEATS)
TEXT = token_text(TOKEN)
INVOICE = "lnbcrt210n1qqqq"


def check(caveats: Sequence[bytes], **changes: Any) -> None:
    call: dict[str, Any] = {
        "service": "svc",
        "route": "GET /wéather",
        "request": "ab" * 32,
        "amount": 21_000,
        "now": NOW,
        "preimage": PREIMAGE,
        **changes,
    }
    check_caveats(caveats, **call)


def reason(caveats: Sequence[bytes], **changes: Any) -> str:
    """Why a token is refused; it must be."""
    with pytest.raises(CaveatRefused) as e:
        check(caveats, **changes)
    assert isinstance(e.value, ValueError)
    return e.value.reason


def test_the_challenge_suits_every_client() -> None:
    line = challenge_header(TEXT, INVOICE).decode()
    assert line == f'L402 macaroon="{TEXT}", invoice="{INVOICE}", version="0", token="{TEXT}"'
    assert read_challenge([line]) == Challenge(TEXT, INVOICE, "L402")


@pytest.mark.parametrize(
    ("values", "found"),
    [
        ([], None),
        (['Basic realm="x"'], None),
        (['LSAT macaroon="a", invoice="b"', 'L402 macaroon="c", invoice="d"'], ("a", "b", "LSAT")),
        (['l402 token="a", invoice="b"'], ("a", "b", "L402")),
        (["L402 macaroon=AG==, invoice=lnbc1"], ("AG==", "lnbc1", "L402")),
        (['Payment id="x", L402 version="0", token="a", invoice="b", new="?"'], ("a", "b", "L402")),
        (['L402 token="a", macaroon="b", invoice="c"'], None),  # which of them?
        (['L402 token="a", invoice="b", INVOICE="c"', 'L402 token="d", invoice="e"'], ("d", "e", "L402")),
        (['L402 token="a"', 'L402 invoice="b"', 'L402 token="", invoice=""'], None),
        (['L402 version="0" token="a", invoice="b"'], ("a", "b", "L402")),  # as @getalby/lightning-tools writes it
        (["L402 token=a invoice=b"], None),
        (['L402 token="a" LSAT macaroon="c", invoice="d"'], None),
        (['L402 token="a', 'LSAT macaroon="c", invoice="d"'], ("c", "d", "LSAT")),
    ],
)
def test_G10_challenges_of_other_servers_are_read(values: list[str], found: tuple[str, str, str] | None) -> None:
    assert read_challenge(values) == found


@pytest.mark.parametrize("value", ['a"b', "a\\b", "a, b", "a:b", "é", ""])
def test_A14_what_can_not_stand_in_a_credential_is_not_read(value: str) -> None:
    written = f'"{value}"'
    if value.isascii():
        written = quoted(value)
        (challenge,) = parse_challenges(challenge_header(value, value).decode())
        assert challenge.params() == {"macaroon": value, "token": value, "invoice": value, "version": "0"}
    assert read_challenge([f'L402 token={written}, invoice="a"', f'L402 token="a", invoice={written}']) is None


@pytest.mark.parametrize("value", ["a\r\nSet-Cookie: x", "a\nb", "a\x00", "—", "\x7f", "\t"])
def test_A14_nothing_splits_the_header(value: str) -> None:
    with pytest.raises(ValueError, match="printable"):
        challenge_header("token", value)
    with pytest.raises(ValueError, match="printable"):
        challenge_header(value, "invoice")


def test_an_identifier_is_version_0() -> None:
    assert read_identifier(identifier(HASH, TOKEN_ID)) == (HASH, TOKEN_ID)
    assert len(identifier(HASH, TOKEN_ID)) == 66
    for made in (b"", b"\x00\x01" + HASH + TOKEN_ID, identifier(HASH, TOKEN_ID)[:-1], b"\x00\x00" + HASH * 3):
        with pytest.raises(ValueError, match="version 0"):
            read_identifier(made)
    for wrong in ((HASH[1:], TOKEN_ID), (HASH, TOKEN_ID + b"x")):
        with pytest.raises(ValueError, match="32 bytes"):
            identifier(*wrong)


def test_G04_a_credential_is_read_in_every_spelling() -> None:
    url_safe = base64.urlsafe_b64encode(serialize(TOKEN)).decode()
    assert url_safe != TEXT
    for scheme in ("L402 ", "LSAT ", "l402 ", "Lsat \t", ""):
        for text in (TEXT, TEXT.rstrip("="), url_safe, url_safe.rstrip("=")):
            for preimage in (PREIMAGE.hex(), PREIMAGE.hex().upper()):
                read = parse_credential(f"{scheme}{text}:{preimage}")
                assert read == (TOKEN, PREIMAGE, HASH, scheme.strip().upper() or "L402", TOKEN_ID)
    assert parse_credential(credential_header(TEXT, PREIMAGE.hex(), "LSAT")).scheme == "LSAT"


def test_a_preimage_may_stand_inside_the_macaroon() -> None:
    """lnget writes it there and sends it; older clients only write it there."""
    inside = TOKEN.narrowed(b"preimage=" + PREIMAGE.hex().encode())
    for sent in ("", PREIMAGE.hex()):
        read = parse_credential(f"L402 {token_text(inside)}:{sent}")
        assert read.preimage == PREIMAGE
        assert is_good(read.token, ROOT)
        check(read.token.caveats, preimage=read.preimage)
    assert reason(inside.caveats, preimage=b"\xac" * 32) == "wrong_preimage"
    assert reason(inside.narrowed(b"preimage=" + b"00" * 32).caveats) == "wrong_preimage"


@pytest.mark.parametrize(
    "value",
    [
        "",
        "L402",
        "L402 ",
        f"L402 {TEXT}",
        f"L402 {TEXT}:",
        f"L402 :{PREIMAGE.hex()}",
        f"L402 {TEXT}:{PREIMAGE.hex()[1:]}",
        f"L402 {TEXT}:{PREIMAGE.hex()}0",
        f"L402 {TEXT}:{PREIMAGE.hex()[:-1]}g",
        f"L402 {TEXT}:{PREIMAGE.hex()} ",
        f"L402 {TEXT}:{PREIMAGE.hex()}:{PREIMAGE.hex()}",
        f"L402 {TEXT},{TEXT}:{PREIMAGE.hex()}",
        f"L402 {TEXT} {TEXT}:{PREIMAGE.hex()}",
        f"L402 L402 {TEXT}:{PREIMAGE.hex()}",
        f"Payment {TEXT}:{PREIMAGE.hex()}",
        f"L402 {TEXT[:-4]}:{PREIMAGE.hex()}",
        f"L402 {serialize(TOKEN).hex()}:{PREIMAGE.hex()}",
        f"L402 {token_text(mint(ROOT, b'other'))}:{PREIMAGE.hex()}",
        f"L402 {token_text(TOKEN.narrowed(b'preimage=abc'))}:",
        f"L402 {token_text(TOKEN.narrowed(bytes((112, 255))))}:",
        "L402 " + "A" * (HEADER_MAX + 1),
    ],
)
def test_what_is_no_credential_is_refused(value: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  # each has words of its own
        parse_credential(value)


def test_a_fresh_token_is_good_for_its_call() -> None:
    check(CAVEATS)
    check(CAVEATS, amount=1)
    check(standard_caveats(service="svc", route="GET /wéather", amount=21_000))
    for service in ("", "a,b", "a:1", "a=b"):
        with pytest.raises(ValueError, match="service"):
            standard_caveats(service=service, route="r", amount=1)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"service": "svc2"}, "caveat_unknown"),
        ({"service": "sv"}, "caveat_unknown"),
        ({"route": "GET /other"}, "wrong_route"),
        ({"request": "ac" * 32}, "wrong_request"),
        ({"request": ""}, "wrong_request"),
        ({"amount": 21_001}, "amount_too_low"),
        ({"now": NOW + 60}, "token_expired"),
    ],
)
def test_G07_a_token_for_another_call_is_refused(changes: dict[str, Any], why: str) -> None:
    assert reason(CAVEATS, **changes) == why


def test_G07_a_token_for_no_service_or_another_is_refused() -> None:
    assert reason([]) == "wrong_service"
    assert reason([b"route=GET /w\xc3\xa9ather"]) == "wrong_service"
    assert reason([b"services=svc2:0"]) == "wrong_service"
    assert reason([b"services=svc:0,svc2:0", b"services=svc2:0"]) == "wrong_service"


@pytest.mark.parametrize(
    ("caveat", "why"),
    [
        (b"services=svc:0,other:0", "caveat_widened"),
        (b"services=svc:1", "caveat_widened"),
        (b"services=", "caveat_widened"),
        (b"svc_valid_until=%d" % (NOW + 61), "caveat_widened"),
        (b"amount_msat=21001", "caveat_widened"),
        (b"amount_msat=20999", "amount_too_low"),
        (b"svc_valid_until=%d" % NOW, "token_expired"),
        (b"route=GET /", "wrong_route"),
        (b"request=00", "wrong_request"),
        (b"preimage=00", "wrong_preimage"),
        (b"svc_capabilities=read", "caveat_unknown"),
        (b"other_valid_until=%d" % (NOW + 1), "caveat_unknown"),
        (b"Route=GET /w\xc3\xa9ather", "caveat_unknown"),
        (b" route=GET /w\xc3\xa9ather", "caveat_unknown"),
        (b"__proto__=1", "caveat_unknown"),
        (b"route", "caveat_malformed"),
        (b"", "caveat_malformed"),
        (b"\xff=1", "caveat_malformed"),
        (b"amount_msat=21_000", "caveat_malformed"),
        (b"amount_msat=-1", "caveat_malformed"),
        (b"amount_msat= 1", "caveat_malformed"),
        (b"svc_valid_until=1e9", "caveat_malformed"),
        (b"svc_valid_until=", "caveat_malformed"),
    ],
)
def test_G01_what_a_holder_adds_can_only_narrow(caveat: bytes, why: str) -> None:
    assert reason((*CAVEATS, caveat)) == why


@pytest.mark.parametrize("caveat", [*CAVEATS, b"services=svc:0,svc:0", b"preimage=" + PREIMAGE.hex().upper().encode()])
def test_the_same_again_narrows_nothing(caveat: bytes) -> None:
    check((*CAVEATS, caveat))


def _allowed(caveats: Sequence[bytes], service: str, amount: int, now: int) -> bool:
    try:
        check(caveats, service=service, amount=amount, now=now)
    except CaveatRefused:
        return False
    return True


services = st.lists(st.sampled_from(["svc:0", "svc:1", "b:0"]), min_size=1).map(
    lambda s: b"services=" + ",".join(s).encode()
)
caveats = st.one_of(
    services,
    st.integers(NOW - 2, NOW + 3).map(lambda n: b"svc_valid_until=%d" % n),
    st.integers(0, 4).map(lambda n: b"amount_msat=%d" % n),
    st.sampled_from([b"route=GET /w\xc3\xa9ather", b"route=x", b"other=1", b"b_valid_until=1", b"junk"]),
)


@given(services, st.lists(caveats, max_size=4), st.lists(caveats, max_size=3), st.integers(0, 4))
def test_G01_no_caveat_ever_lets_more_pass(first: bytes, had: list[bytes], added: list[bytes], amount: int) -> None:
    """Whatever is added: a call that was refused stays refused."""
    for service in ("svc", "b"):
        for now in (NOW - 1, NOW, NOW + 2):
            if _allowed([first, *had, *added], service, amount, now):
                assert _allowed([first, *had], service, amount, now)


VALUE = f"{TEXT}:{PREIMAGE.hex()}".encode()


def header(*values: bytes, name: bytes = b"authorization") -> list[tuple[bytes, bytes]]:
    return [(b"host", b"x"), *((name, value) for value in values)]


@pytest.mark.parametrize(
    ("scheme", "kind"), [(b"L402", "l402"), (b"lsat", "l402"), (b"LSAT", "l402"), (b"Payment", "payment")]
)
def test_G04_every_door_is_one(scheme: bytes, kind: str) -> None:
    found = find_authorization(header(b" " + scheme + b"  " + VALUE + b"\t"))
    assert found == (kind, VALUE.decode(), "authorization", scheme.decode())


def test_a_payment_beside_an_api_key() -> None:
    key = header(b"Bearer sk-1")
    paid = header(b"payment eyJ9", name=b"payment-authorization")
    assert find_authorization(key + paid) == ("payment", "eyJ9", "payment-authorization", "payment")
    assert find_authorization(paid) == ("payment", "eyJ9", "payment-authorization", "payment")
    assert find_authorization(key) is None
    assert find_authorization([]) is None


@pytest.mark.parametrize(
    "value",
    [
        b"Bearer sk-1",
        b"Basic dTpw",
        b"Token abc",
        b"",
        b"L402x abc",
        b"Payments abc",
        b"payment-token abc",
        b"paymentabc",
        b'Digest username="a, Payment b", nc=1',
        b'Digest username="a\\", Payment b"',
        b"Bearer L402",
        b"Bearer caf\xe9",
    ],
)
def test_other_schemes_are_not_ours(value: bytes) -> None:
    assert find_authorization(header(value)) is None
    assert find_authorization(header(value, value)) is None


@pytest.mark.parametrize(
    "headers",
    [
        header(b"L402 " + VALUE, b"L402 " + VALUE),
        header(b"L402 " + VALUE, b"LSAT " + VALUE),
        header(b"Bearer x", b"L402 " + VALUE),
        header(b"Payment eyJ9", b"Basic x"),
        header(b"L402 " + VALUE) + header(b"Payment eyJ9", name=b"payment-authorization"),
        header(b"Payment eyJ9") + header(b"Payment eyJ9", name=b"payment-authorization"),
        header(b"Payment eyJ9", b"Payment eyJ9", name=b"payment-authorization"),
        header(b"L402 " + VALUE, name=b"payment-authorization"),
        header(b"Bearer x", name=b"payment-authorization"),
        header(b"", name=b"payment-authorization"),
        header(b"Bearer x, L402 " + VALUE),
        header(b"Bearer x,payment eyJ9"),
        header(b"Bearer x, Payment eyJ9") + header(b"Payment eyJ9", name=b"payment-authorization"),
        header(b"Bearer x\r\n L402 " + VALUE),
        header(b"Bearer x\x00"),
        header(b"L402"),
        header(b"Payment "),
        header(b"L402 " + VALUE + b"\r\n X: y"),
        header(b"L402 a\x00b"),
        header(b"L402 a\x7fb"),
        header(b"Payment \xc3\xa9"),
        header(b"Payment a\nb"),
        header(b"Payment\x0babc"),
        header(b"Payment=abc"),
    ],
)
def test_A11_one_well_formed_credential_or_none(headers: list[tuple[bytes, bytes]]) -> None:
    with pytest.raises(MalformedPayment):
        find_authorization(headers)


def test_A11_a_second_scheme_behind_ours_can_not_be_read() -> None:
    found = find_authorization(header(b"L402 " + VALUE + b", Bearer x"))
    assert found is not None
    with pytest.raises(ValueError, match="preimage"):
        parse_credential(found.value)


def test_K01_a_credential_over_the_limit_is_not_read() -> None:
    with pytest.raises(HeaderTooLarge):
        find_authorization(header(b"L402 " + b"A" * HEADER_MAX))
    assert find_authorization(header(b"Bearer " + b"A" * HEADER_MAX)) is None
