"""Group G: tokens and challenges that are bent, invoices that are not paid as they should be. Two real nodes."""

from __future__ import annotations

import json
import secrets
import time
from base64 import b64decode, b64encode, urlsafe_b64encode
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import pytest

from tests.support.lightning_till import FIXED, SERVICE, Bought, Till, chat, opened
from x402kit.devnet import LightningDevnet
from x402kit.protocols import l402, payment_auth
from x402kit.protocols.macaroon import Macaroon, parse, serialize

FAR = str(2**33)
OLD, NEW = b"the secret of last year", b"the secret of this year"


@pytest.fixture
async def till(lightning: LightningDevnet, tmp_path: Path) -> AsyncGenerator[Till]:
    async with opened(lightning, tmp_path / "payments.db") as made:
        yield made


def token_of(bought: Bought) -> Macaroon:
    return parse(b64decode(bought.offer.token))


def as_header(token: Macaroon | str, preimage: str) -> dict[str, str]:
    text = token if isinstance(token, str) else l402.token_text(token)
    return {"Authorization": f"L402 {text}:{preimage}"}


def challenged(bought: Bought, **changes: str) -> dict[str, str]:
    """A credential whose challenge says something else than it did."""
    assert bought.offer.payment is not None
    changed = bought.offer.payment._replace(**changes)
    return {"Authorization": payment_auth.credential_header(changed, {"preimage": bought.preimage})}


async def refused(till: Till, bought: Bought, headers: dict[str, str], reason: str, path: str = "/fixed") -> None:
    """402, nothing ran, and the payment itself is good as it was."""
    runs = len(till.runs)
    answer = await till.show(path, headers)
    assert (answer.status, answer.reason, len(till.runs)) == (402, reason, runs)
    assert await till.state(bought) in ("", "settled")


# G01


@pytest.mark.parametrize(
    ("caveat", "reason"),
    [
        (f"amount_msat={FIXED + 1}", "caveat_widened"),
        ("amount_msat=1", "amount_too_low"),
        ("amount_msat=-1", "caveat_malformed"),
        ("amount_msat=１００００", "caveat_malformed"),
        (f"{SERVICE}_valid_until={FAR}", "caveat_widened"),
        (f"{SERVICE}_valid_until=1", "token_expired"),
        (f"services={SERVICE}:0,other:0", "caveat_widened"),
        ("services=other:0", "caveat_widened"),
        ("route=%2Fother", "wrong_route"),
        ("route=", "wrong_route"),
        ("request=" + "00" * 32, "wrong_request"),
        ("preimage=" + "00" * 32, "wrong_preimage"),
        ("time<2030", "caveat_malformed"),
        ("ip=127.0.0.1", "caveat_unknown"),
        ("__proto__=1", "caveat_unknown"),
        ("=", "caveat_unknown"),
    ],
)
async def test_G01_a_caveat_that_somebody_added_only_takes_away(till: Till, caveat: str, reason: str) -> None:
    bought = await till.buy("/fixed")
    await refused(till, bought, bought.narrowed(caveat), reason)
    assert (await till.show("/fixed", bought.narrowed("preimage=" + bought.preimage))).status == 200


async def test_G01_caveats_taken_away_moved_or_made_anew_are_no_token_of_ours(till: Till) -> None:
    bought = await till.buy("/fixed")
    token = token_of(bought)
    caveats = token.caveats
    bent = [caveats[:-1], caveats[::-1], (), (caveats[1], caveats[0], *caveats[2:]), (*caveats[:2], *caveats[3:])]
    for changed in bent:
        await refused(till, bought, as_header(token._replace(caveats=changed), bought.preimage), "token_invalid")
    for other in (token._replace(identifier=token.identifier[:-1] + b"\x00"), token._replace(signature=bytes(32))):
        await refused(till, bought, as_header(other, bought.preimage), "token_invalid")
    moved = token._replace(location="elsewhere")  # a hint that nothing covers
    assert (await till.show("/fixed", as_header(moved, bought.preimage))).status == 200


async def test_G01_a_narrowed_token_is_told_no_stored_answer_that_it_could_not_buy(till: Till) -> None:
    bought = await till.buy("/fixed")
    assert (await till.show("/fixed", bought.l402)).status == 200
    for caveat in (f"{SERVICE}_valid_until=1", "amount_msat=1", "route=other", "ip=127.0.0.1"):
        answer = await till.ask("/fixed", bought.narrowed(caveat))
        assert (answer.status, b"goods" in answer.body) == (402, False)
    assert (await till.ask("/fixed", bought.narrowed(f"amount_msat={FIXED}"))).header("payment-replayed") == "true"


async def test_G01_a_narrowed_token_spends_no_more_of_what_is_left_than_it_says(till: Till) -> None:
    bought = await till.buy("/chat", chat(0))
    await till.show("/chat", bought.l402, chat(0))
    assert await till.left(bought) == FIXED
    route = "tests.support.lightning_till./chat"
    for caveats, asked, good in (
        (["amount_msat=3000"], 301, False),
        (["amount_msat=3000"], 300, True),
        (["amount_msat=3000", "amount_msat=4000"], 300, False),
        ([f"{SERVICE}_valid_until=1"], 300, False),
        (["route=" + route], 300, True),
        (["route=other"], 300, False),
        (["request=" + "00" * 32], 300, False),
        (["ip=127.0.0.1"], 300, False),
    ):
        answer = await till.ask("/chat", bought.narrowed(*caveats), chat(asked, asked))
        assert (answer.status == 200) is good, (caveats, answer.body)
    assert await till.left(bought) == FIXED - 2 * 3000


async def test_G01_not_even_a_call_that_costs_more_than_was_held_takes_more(till: Till) -> None:
    """``overage="charge"`` may go above a reserve, and not above what a token says."""
    bought = await till.buy("/charged", chat(0))
    await till.show("/charged", bought.l402, chat(0))
    answer = await till.ask("/charged", bought.narrowed("amount_msat=3000"), chat(900, 300))
    assert (answer.status, await till.left(bought)) == (200, FIXED - 3000)


# G02


async def test_G02_a_preimage_of_another_invoice(till: Till) -> None:
    bought, other = await till.buy("/fixed"), await till.buy("/fixed", client="10.0.0.9")
    assert bought.offer.hash != other.offer.hash
    for preimage in (other.preimage, "00" * 32, secrets.token_hex(32)):
        await refused(till, bought, as_header(bought.offer.token, preimage), "preimage_mismatch")
        assert bought.offer.payment is not None
        shown = payment_auth.credential_header(bought.offer.payment, {"preimage": preimage})
        await refused(till, bought, {"Authorization": shown}, "preimage_mismatch")
    # A token whose hash was exchanged for one that is paid.
    token = token_of(bought)
    hash_of_other = bytes.fromhex(other.offer.hash)
    swapped = token._replace(identifier=token.identifier[:2] + hash_of_other + token.identifier[34:])
    await refused(till, bought, as_header(swapped, other.preimage), "token_invalid")
    assert (await till.show("/fixed", bought.l402)).status == 200


# G04


@pytest.mark.parametrize("scheme", ["L402", "l402", "LSAT", "lsat", "LsAt"])
async def test_G04_every_spelling_that_is_taken_is_counted(till: Till, scheme: str) -> None:
    bought = await till.buy("/fixed")
    spelled = {"Authorization": f"{scheme}  {bought.offer.token}:{bought.preimage.upper()}"}
    inside = l402.token_text(token_of(bought).narrowed(f"preimage={bought.preimage}".encode()))
    assert (await till.show("/fixed", spelled)).status == 200
    for headers in (spelled, bought.l402, {"Authorization": f"{scheme} {inside}:"}, bought.payment):
        again = await till.ask("/fixed", headers)
        assert (again.status, again.header("payment-replayed")) == (200, "true")
    assert len(till.runs) == 1


async def test_G04_other_doors_are_walls(till: Till) -> None:
    bought = await till.buy("/fixed")
    token = serialize(token_of(bought).narrowed(f"preimage={bought.preimage}".encode())).hex()
    for name in ("Macaroon", "Grpc-Metadata-Macaroon", "Grpc-Metadata-macaroon", "X-L402"):
        assert (await till.ask("/fixed", {name: token})).status == 402
    for text in (f"Bearer {bought.offer.token}:{bought.preimage}", f"L402-x {bought.offer.token}:{bought.preimage}"):
        assert (await till.ask("/fixed", {"Authorization": text})).status == 402
    assert till.runs == []


# G07


async def test_G07_a_token_of_another_service_on_the_same_node(lightning: LightningDevnet, tmp_path: Path) -> None:
    ours = opened(lightning, tmp_path / "ours.db")
    theirs = opened(lightning, tmp_path / "theirs.db", service="other", origin="https://other.example")
    strangers = opened(lightning, tmp_path / "strangers.db", secret=NEW)
    async with ours as till, theirs as other, strangers as stranger:  # the first two share their secret
        bought = await till.buy("/fixed")
        for shop in (other, stranger):
            for headers in (bought.l402, bought.payment):
                answer = await shop.ask("/fixed", headers)
                assert (answer.status, shop.runs) == (402, [])
                assert await shop.store.get(f"lightning:{bought.offer.hash}") is None
        assert (await till.show("/fixed", bought.l402)).status == 200


async def test_G07_a_twin_with_the_same_secret_and_name_has_not_sold_it(
    lightning: LightningDevnet, tmp_path: Path
) -> None:
    async with opened(lightning, tmp_path / "a.db") as till, opened(lightning, tmp_path / "b.db") as twin:
        bought = await till.buy("/fixed")
        for headers in (bought.l402, bought.payment):
            assert (await twin.ask("/fixed", headers)).status == 402
        assert (await till.show("/fixed", bought.l402)).status == 200
        assert twin.runs == []


# G08, G10


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("realm", "evil.example"),
        ("realm", "shop.example|lightning"),
        ("method", "evm"),
        ("intent", "session"),
        ("expires", "2099-01-01T00:00:00Z"),
        ("digest", "sha-256=:AAAA:"),
        ("opaque", "e30"),
        ("header", "Payment-Authorization"),
        ("id", "A" * 43),
    ],
)
async def test_G08_a_challenge_that_says_something_else_is_none_of_ours(till: Till, name: str, value: str) -> None:
    bought = await till.buy("/fixed")
    await refused(till, bought, challenged(bought, **{name: value}), "invalid_challenge")
    assert (await till.show("/fixed", bought.payment)).status == 200


async def test_G08_a_challenge_for_another_invoice_or_amount(till: Till) -> None:
    bought, other = await till.buy("/fixed"), await till.offer("/dear")
    assert bought.offer.payment is not None
    assert other.payment is not None
    request = payment_auth.read_request(bought.offer.payment.request)
    cheaper = {**request, "amount": "1"}
    for changed in (payment_auth.request_text(cheaper), other.payment.request):
        await refused(till, bought, challenged(bought, request=changed), "invalid_challenge")


async def test_G10_what_could_be_read_in_two_ways_is_not_read(till: Till) -> None:
    bought = await till.buy("/fixed")
    assert bought.offer.payment is not None
    echo = {name: value for name, value in bought.offer.payment._asdict().items() if value}
    document = json.dumps({"challenge": echo, "payload": {"preimage": bought.preimage}})
    twice = document.replace('"payload":', '"payload": {"preimage": "' + "00" * 32 + '"}, "payload":')
    inner = document.replace('"realm":', '"realm": "evil.example", "realm":')
    upper = document.replace(bought.preimage, bought.preimage.upper())
    for text in (twice, inner, upper, document[:-1], "[]", "{}"):
        shown = urlsafe_b64encode(text.encode()).decode().rstrip("=")
        answer = await till.ask("/fixed", {"Authorization": f"Payment {shown}"})
        assert answer.status == 400, text
    assert till.runs == []
    plain = json.dumps({"__proto__": {"realm": "evil.example"}, "constructor": 1, **json.loads(document)})
    shown = b64encode(plain.encode()).decode()
    assert (await till.show("/fixed", {"Authorization": f"pAYMENT {shown}"})).status == 200  # names that say nothing


@pytest.mark.parametrize(
    "text",
    ["", "L402", "L402 ", "L402 abc", "L402 :", "L402 AgE=:", "Payment", "Payment !!!", "Payment e30=", "LSAT a:b c:d"],
)
async def test_G10_what_cannot_be_read_is_400_and_changes_nothing(till: Till, text: str) -> None:
    answer = await till.ask("/fixed", {"Authorization": text})
    assert answer.status == (402 if not text else 400)
    assert (till.node.asked, till.runs) == (0, [])


# G09


async def test_G09_a_secret_is_rotated_and_what_was_paid_before_is_good(
    lightning: LightningDevnet, tmp_path: Path
) -> None:
    ledger = tmp_path / "payments.db"
    async with opened(lightning, ledger, secret=OLD) as till:
        by_token, by_challenge, passed = await till.buy("/fixed"), await till.buy("/other"), await till.buy("/three")
        unpaid = await till.offer("/fixed?later")
    async with opened(lightning, ledger, secret=[NEW, OLD]) as till:
        assert (await till.show("/fixed", by_token.l402)).status == 200
        assert (await till.show("/other", by_challenge.payment)).status == 200
        assert (await till.show("/three", passed.l402)).status == 200
        late = await till.pay(unpaid)
        assert (await till.show("/fixed?later", late.l402)).status == 200
        fresh = await till.buy("/fixed?new")
    async with opened(lightning, ledger, secret=NEW) as till:
        assert (await till.show("/fixed?new", fresh.payment)).status == 200
        for headers in (passed.l402, by_challenge.payment):
            assert (await till.ask("/three", headers)).status == 402
        assert await till.left(passed) == 2 * FIXED  # it is still in the books


# G11, G12: sessions of the Payment scheme, with their vouchers and refund invoices, don't exist here.


async def test_G11_G12_no_session_is_offered_and_none_can_be_opened(till: Till) -> None:
    for path in ("/fixed", "/three", "/hour", "/chat"):
        answer = await till.ask(path, None, chat(1) if path == "/chat" else None)
        offered = payment_auth.read_challenges(answer.all("www-authenticate"))
        assert {each.intent for each in offered} == {"charge"}
    bought = await till.buy("/fixed")
    assert bought.offer.payment is not None
    payloads: list[dict[str, Any]] = [
        {"action": "open", "preimage": bought.preimage, "returnInvoice": bought.offer.invoice},
        {"action": "bearer", "sessionId": bought.offer.hash, "preimage": bought.preimage},
        {"action": "topUp", "sessionId": bought.offer.hash, "topUpPreimage": bought.preimage},
        {"action": "close", "sessionId": bought.offer.hash, "preimage": bought.preimage},
    ]
    session = bought.offer.payment._replace(intent="session")
    for payload in payloads:
        shown = {"Authorization": payment_auth.credential_header(session, payload)}
        await refused(till, bought, shown, "invalid_challenge")
    before = await till.payer.payment(bought.offer.hash)
    assert before.state == "succeeded"
    assert (await till.show("/fixed", bought.payment)).status == 200


# Clocks


@pytest.mark.parametrize("skew", [-120, 120, 1200])
async def test_A15_what_was_paid_in_time_is_served_whatever_our_clock_says(
    till: Till, monkeypatch: pytest.MonkeyPatch, skew: int
) -> None:
    bought = await till.buy("/fixed")
    shifted = time.time() + skew
    monkeypatch.setattr(time, "time", lambda: shifted)
    assert (await till.show("/fixed", bought.payment)).status == 200
