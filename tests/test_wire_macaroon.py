"""Macaroons: the other libraries' bytes, one spelling for each; what was taken away or moved is never good."""

from __future__ import annotations

import base64
import hashlib
import hmac
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from x402kit.protocols.macaroon import CAVEATS_MAX, MACAROON_MAX, Macaroon, is_good, mint, parse, serialize

ROOT = bytes.fromhex("33" * 32)
IDENTIFIER = bytes.fromhex("0000" + "11" * 32 + "22" * 32)
GOLDEN = (
    "0201046c73617402420000111111111111111111111111111111111111111111111111111111111111111122222222222222222222222222"
    "2222222222222222222222222222222222222200020e73657276696365733d7376633a3000000620ce614e761d500519323f1d7fead6caa0"
    "5e73c14d37592a04e1c287fd58d6500b"
)
GOLDEN_BASE64 = (
    "AgEEbHNhdAJCAAARERERERERERERERERERERERERERERERERERERERERESIiIiIiIiIiIiIiIiIiIiIiIiIiIiIiIiIiIiIiIiIiAAIOc2VydmljZXM9"
    "c3ZjOjAAAAYgzmFOdh1QBRkyPx1/6tbKoF5zwU03WSoE4cKH/VjWUAs="
)
CAVEATS = (b"services=svc:0", b"svc_valid_until=1900000000", b"route=GET /weather")
MADE = mint(ROOT, IDENTIFIER, "lsat", CAVEATS)

caveat_lists = st.lists(st.binary(min_size=1, max_size=60), max_size=6).map(tuple)


def test_a_macaroon_has_the_bytes_of_the_other_libraries() -> None:
    made = mint(ROOT, IDENTIFIER, "lsat", [b"services=svc:0"])
    assert serialize(made).hex() == GOLDEN
    assert base64.b64encode(serialize(made)).decode() == GOLDEN_BASE64
    assert parse(bytes.fromhex(GOLDEN)) == made
    assert made.signature.hex() == "ce614e761d500519323f1d7fead6caa05e73c14d37592a04e1c287fd58d6500b"
    assert is_good(made, ROOT)
    assert not is_good(made, b"4" * 32)


def test_the_chain_is_the_one_that_is_documented() -> None:
    signature = hmac.new(b"macaroons-key-generator", ROOT, hashlib.sha256).digest()
    for part in (IDENTIFIER, *CAVEATS):
        signature = hmac.new(signature, part, hashlib.sha256).digest()
    assert signature == MADE.signature


@given(st.binary(min_size=1, max_size=64), st.binary(max_size=200), st.text(max_size=20), caveat_lists)
def test_what_is_minted_is_read_and_good(
    root: bytes, identifier: bytes, location: str, caveats: tuple[bytes, ...]
) -> None:
    made = mint(root, identifier, location, caveats)
    assert parse(serialize(made)) == made
    assert is_good(made, root)
    narrowed = made
    for caveat in caveats:
        narrowed = narrowed.narrowed(caveat)
    assert narrowed == mint(root, identifier, location, caveats + caveats)
    assert is_good(narrowed, root)


@given(caveat_lists, st.data())
def test_G01_caveats_dropped_moved_or_changed_are_refused(caveats: tuple[bytes, ...], data: st.DataObject) -> None:
    made = mint(ROOT, IDENTIFIER, "", caveats)
    other = data.draw(st.one_of(st.permutations(caveats).map(tuple), st.sampled_from(_tampered(caveats))))
    forged = made._replace(caveats=other)
    assert is_good(forged, ROOT) == (other == caveats)
    # Whoever adds to a forged list can't mend it: the signature before it is not theirs.
    assert is_good(forged.narrowed(b"route=a"), ROOT) == (other == caveats)


def _tampered(caveats: tuple[bytes, ...]) -> list[tuple[bytes, ...]]:
    return [
        caveats[:-1],
        caveats[1:],
        (),
        (*caveats, b"x"),
        (b"x", *caveats),
        tuple(caveat + b"0" for caveat in caveats),
        (b"".join(caveats),),
    ]


def test_G01_a_signature_from_further_up_the_chain_is_no_way_back() -> None:
    for kept in range(len(CAVEATS)):
        forged = MADE._replace(caveats=CAVEATS[:kept])
        assert not is_good(forged, ROOT)
        assert is_good(mint(ROOT, IDENTIFIER, "", CAVEATS[:kept]), ROOT)


def test_the_location_is_covered_by_nothing() -> None:
    assert is_good(MADE._replace(location="elsewhere"), ROOT)


def _with(**changes: bytes) -> bytes:
    """The bytes of a macaroon, part by part, with some of them changed."""
    parts = {
        "version": b"\x02",
        "location": b"\x01\x04lsat",
        "identifier": b"\x02\x42" + IDENTIFIER,
        "end": b"\x00",
        "caveat": b"\x02\x03a=b\x00",
        "ends": b"\x00",
        "signature": b"\x06\x20" + bytes(32),
        **changes,
    }
    return b"".join(parts.values())


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x02",
        _with(version=b"\x01"),
        _with(version=b"\x03"),
        _with(version=b"0"),
        _with(identifier=b""),
        _with(identifier=b"\x03\x01a"),
        _with(identifier=b"\x02\x80"),
        _with(identifier=b"\x02\xff\xff\xff\xff\x0f" + IDENTIFIER),
        _with(identifier=b"\x02\xc2\x00" + IDENTIFIER),  # 66 in two bytes
        _with(identifier=b"\x02\x7f" + IDENTIFIER),
        _with(location=b"\x01\x00"),  # an empty one is left out
        _with(location=b"\x01\x01\xff"),
        _with(location=b"\x01\x04lsat\x01\x04lsat"),
        _with(end=b""),
        _with(end=b"\x00\x00"),
        _with(caveat=b"\x02\x03a=b"),
        _with(caveat=b"\x01\x01x\x02\x03a=b\x00"),  # a third party's place
        _with(caveat=b"\x02\x03a=b\x04\x01x\x00"),  # a third party's key
        _with(ends=b""),
        _with(ends=b"\x00\x00"),
        _with(signature=b"\x06\x1f" + bytes(31)),
        _with(signature=b"\x06\x20" + bytes(31)),
        _with(signature=b"\x06\x20" + bytes(33)),
        _with(signature=b"\x05\x20" + bytes(32)),
        _with() + b"\x00",
        _with(caveat=b"\x02\x03a=b\x00" * (CAVEATS_MAX + 1)),
        _with(identifier=b"\x02\x80\x20" + bytes(MACAROON_MAX)),
    ],
)
def test_what_is_no_macaroon_of_ours_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  # each has words of its own
        parse(data)


def test_the_parts_that_the_cases_above_change_are_good() -> None:
    assert parse(_with()) == Macaroon("lsat", IDENTIFIER, (b"a=b",), bytes(32))
    assert len(parse(_with(caveat=b"\x02\x03a=b\x00" * CAVEATS_MAX)).caveats) == CAVEATS_MAX


@given(st.integers(0, len(GOLDEN) * 4 - 1))
def test_G01_every_bit_but_the_locations_counts(bit: int) -> None:
    data = bytearray(serialize(mint(ROOT, IDENTIFIER, "", CAVEATS)))
    bit %= len(data) * 8
    data[bit // 8] ^= 1 << bit % 8
    try:
        read = parse(bytes(data))
    except ValueError:
        return
    assert not is_good(read, ROOT)


@given(st.binary(max_size=300))
def test_any_bytes_are_one_macaroon_or_a_value_error(data: bytes) -> None:
    try:
        read = parse(data)
    except ValueError:
        return
    assert serialize(read) == data


def test_K03_limits_hold_when_writing_too() -> None:
    for made in (
        mint(ROOT, IDENTIFIER, "", [b"a=b"] * (CAVEATS_MAX + 1)),
        mint(ROOT, bytes(MACAROON_MAX)),
        MADE._replace(signature=bytes(31)),
    ):
        with pytest.raises(ValueError, match="no macaroon of ours"):
            serialize(made)
    largest = mint(ROOT, bytes(MACAROON_MAX - 40))
    assert len(serialize(largest)) == MACAROON_MAX
    started = time.process_time()
    assert parse(serialize(largest)) == largest
    assert time.process_time() - started < 0.25
