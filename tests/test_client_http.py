"""The payer over real HTTP, in the four kinds of client: dialects, lost answers, refusals, redirects, streams."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import httpx2
import pytest

from tests.support.clients import ADDRESS, KINDS, call, client_of, payer, request
from tests.support.paid_server import NETWORK, PAY_TO, USDC, PaidServer, entry, serving, v1_entry
from tests.support.paid_server import seller as seller
from tests.support.paid_server import server as server
from x402kit.client import (
    Limits,
    Payer,
    PaymentNotAccepted,
    PaymentOutcomeUnknown,
    PolicyRefused,
    Proposal,
    UnreplayableBody,
    payment_of,
)
from x402kit.protocols import x402

every_kind = pytest.mark.parametrize("kind", KINDS)


def payload_of(payment: str) -> dict[str, Any]:
    return x402.decode_header(payment, floats=True)


# What is not for us


@every_kind
@pytest.mark.parametrize("path", ["/free/a", "/plain402/a", "/big402/a"])
def test_an_answer_that_is_no_challenge_comes_back_untouched(seller: PaidServer, kind: str, path: str) -> None:
    answer = call(payer(), kind, seller.url + path)
    with httpx.Client() as plain:
        bare = plain.post(seller.url + path, content=b"hi")
    assert (answer.status_code, answer.content) == (bare.status_code, bare.content)
    assert payment_of(answer) is None
    assert len(seller.seen) == 2
    assert seller.paid == []


@every_kind
def test_an_untouched_402_can_still_be_streamed(seller: PaidServer, kind: str) -> None:
    async def chunks() -> int:
        async with client_of(payer(), kind) as client, client.stream("POST", seller.url + "/big402/a") as answer:
            return sum([len(chunk) async for chunk in answer.aiter_bytes()])

    if kind.endswith("async"):
        size = asyncio.run(chunks())
    else:
        with client_of(payer(), kind) as client, client.stream("POST", seller.url + "/big402/a") as answer:
            size = sum(len(chunk) for chunk in answer.iter_bytes())
    assert size > 200_000


@every_kind
def test_M05_a_402_with_only_unknown_assets_comes_back_untouched(seller: PaidServer, kind: str) -> None:
    fake = entry(asset="0x" + "ab" * 20, extra={"name": "USD Coin", "version": "2", "decimals": 6})
    seller.offers["/v2/fake"] = [fake, entry(scheme="upto"), entry(network="eip155:999"), entry(payTo="alice")]
    answer = call(payer(), kind, seller.url + "/v2/fake")
    assert answer.status_code == 402
    assert payment_of(answer) is None
    assert seller.paid == []


def test_a_request_that_carries_a_payment_already_is_left_alone(seller: PaidServer) -> None:
    paying = payer()
    first = call(paying, "httpx", seller.url + "/v2/a")
    header = seller.paid[0].payment
    again = call(paying, "httpx", seller.url + "/v2/a", headers={"Payment-Signature": header})
    assert (payment_of(first) is not None, payment_of(again)) == (True, None)
    assert again.headers["payment-replayed"] == "true"
    assert len(paying.payments()) == 1


# Dialects


@every_kind
@pytest.mark.parametrize("dialect", ["v2", "v2body", "v1", "katana"])
def test_each_dialect_is_paid(seller: PaidServer, kind: str, dialect: str) -> None:
    paying = payer()
    answer = call(paying, kind, f"{seller.url}/{dialect}/a")
    info = payment_of(answer)
    assert answer.content == b"goods hi"
    assert info is not None
    assert (info.amount, info.network, info.asset, info.pay_to) == (10000, NETWORK, USDC.address, PAY_TO)
    assert (info.payer, info.verified, info.replayed, info.problem) == (ADDRESS, True, False, "")
    assert info.transaction == info.reference
    assert len(seller.settled) == 1
    assert [row.state for row in paying.payments()] == ["accepted"]


def test_a_v2_payment_echoes_the_entry_the_resource_and_the_extensions_unchanged(seller: PaidServer) -> None:
    raw = entry(extra={"name": "USD Coin", "version": "2", "rate": 1.25, "list": [1, {"a": None}]}, note="kept")
    seller.offers["/v2/a"] = [raw]
    seller.resource = {"url": "https://seller/", "serviceName": "S", "tags": ["a"]}
    seller.extensions = {"bazaar": {"info": {"x": 1}, "schema": {}}}
    call(payer(), "httpx", seller.url + "/v2/a")
    sent = payload_of(seller.paid[0].payment)
    assert sent["accepted"] == raw
    assert (sent["resource"], sent["extensions"]) == (seller.resource, seller.extensions)
    authorization = sent["payload"]["authorization"]
    assert {type(value) for value in authorization.values()} == {str}
    assert (authorization["validAfter"], len(authorization["nonce"])) == ("0", 66)


def test_a_payment_that_would_not_fit_in_a_header_goes_without_resource_and_extensions(seller: PaidServer) -> None:
    seller.extensions = {"long": {"info": "x" * 11_700}}
    call(payer(), "httpx", seller.url + "/v2/a")
    assert "extensions" not in payload_of(seller.paid[0].payment)


def test_a_v1_payment_names_scheme_and_network_as_offered(seller: PaidServer) -> None:
    call(payer(), "httpx", seller.url + "/v1/a")
    sent = payload_of(seller.paid[0].headers["x-payment"])
    assert {key: sent[key] for key in ("x402Version", "scheme", "network")} == {
        "x402Version": 1,
        "scheme": "exact",
        "network": "base",
    }
    assert "accepted" not in sent


def test_B14_the_authorization_lives_no_longer_than_our_own_cap(seller: PaidServer) -> None:
    call(payer(clock=lambda: 1_800_000_000.9), "httpx", seller.url + "/katana/a")
    call(payer(clock=lambda: 1_800_000_000.9), "httpx", seller.url + "/v2/a")
    ends = [payload_of(seen.payment)["payload"]["authorization"]["validBefore"] for seen in seller.paid]
    assert ends == ["1800000600", "1800000060"]


def test_the_first_offer_that_the_policy_allows_is_taken(seller: PaidServer) -> None:
    other = entry(network="eip155:137", asset="0x3c499c542cEF5E3811e1192ce70d8cC03d5c3359")
    seller.offers["/v2/a"] = [other, entry(amount="60000"), entry(amount="20000"), entry()]
    answer = call(payer(limits=Limits(per_call="$0.05", networks=["base"])), "httpx", seller.url + "/v2/a")
    info = payment_of(answer)
    assert info is not None
    assert info.amount == 20000


def test_a_compressed_challenge_is_read_and_a_bomb_is_not(seller: PaidServer) -> None:
    bodies = {
        "/good": gzip.compress(json.dumps({"x402Version": 1, "accepts": [v1_entry()]}).encode()),
        "/bomb": gzip.compress(b" " * 10_000_000 + b"{}"),
        "/junk": b"\x1f\x8bjunk",
    }
    headers = {"content-type": "application/json", "content-encoding": "gzip"}
    asked: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        if "x-payment" in request.headers:
            return httpx.Response(200)
        return httpx.Response(402, headers=headers, stream=httpx.ByteStream(bodies[request.url.path]))

    paying = payer()
    transport = paying.transport(httpx.MockTransport(answer))
    for path in bodies:
        transport.handle_request(httpx.Request("GET", "http://127.0.0.1" + path)).close()
    assert [request.url.path for request in asked] == ["/good", "/good", "/bomb", "/junk"]


# Lost answers: the same payment again


@every_kind
@pytest.mark.parametrize("fault", ["502", "drop", "503", "409", "hang"])
def test_M02_after_a_lost_answer_the_same_payment_is_shown_again(seller: PaidServer, kind: str, fault: str) -> None:
    seller.script["/v2/a"] = [fault, fault]
    seller.hang = 0.6
    answer = call(payer(read_timeout=0.2), kind, seller.url + "/v2/a", timeout=0.2)
    assert answer.content == b"goods hi"
    assert len({seen.payment for seen in seller.paid}) == 1
    assert len(seller.paid) == 3
    assert len(seller.settled) == 1
    info = payment_of(answer)
    assert info is not None
    assert info.replayed is (fault not in ("503", "409"))


@every_kind
def test_M02_a_form_is_the_same_call_whatever_its_boundary_is(seller: PaidServer, kind: str) -> None:
    seller.script["/v2/a"] = ["502"] * 3
    paying = payer()
    form: dict[str, Any] = {"data": {"model": "m"}, "files": {"file": ("a.wav", b"RIFF--")}}
    for status in (502, 200):
        assert request(paying, kind, "POST", seller.url + "/v2/a", **form).status_code == status
    assert len({seen.payment for seen in seller.paid}) == 1
    assert len({(seen.body, seen.headers["content-type"]) for seen in seller.seen}) == 1
    form["files"] = {"file": ("a.wav", b"RIFF")}
    assert request(paying, kind, "POST", seller.url + "/v2/a", **form).status_code == 200
    assert len(seller.settled) == 2
    boundary = seller.seen[0].headers["content-type"].partition("boundary=")[2].encode()
    assert seller.seen[0].body.count(b"--" + boundary) == 3
    assert b"\r\n\r\nRIFF--\r\n--" in seller.seen[0].body


def test_M02_a_boundary_that_the_caller_chose_stays(seller: PaidServer) -> None:
    kind = {"content-type": "multipart/form-data; boundary=ours"}
    request(payer(), "httpx", "POST", seller.url + "/v2/a", files={"a": b"b"}, headers=kind)
    assert {seen.headers["content-type"] for seen in seller.seen} == set(kind.values())
    assert b"--ours" in seller.seen[0].body


@every_kind
def test_M02_an_answer_that_stays_lost_is_a_time_out_of_the_clients_own(seller: PaidServer, kind: str) -> None:
    seller.script["/v2/a"] = ["drop"] * 3
    paying = payer()
    family = httpx2 if kind.startswith("httpx2") else httpx
    with pytest.raises(PaymentOutcomeUnknown) as caught:
        call(paying, kind, seller.url + "/v2/a")
    assert isinstance(caught.value, family.ReadTimeout)
    assert isinstance(caught.value.__cause__, family.TransportError)
    (row,) = paying.payments(only_open=True)
    assert (row.reference, row.state) == (caught.value.reference, "unknown")
    answer = call(paying, kind, seller.url + "/v2/a")
    assert answer.content == b"goods hi"
    assert (len(seller.settled), len({seen.payment for seen in seller.paid})) == (1, 1)
    assert [row.state for row in paying.payments()] == ["accepted"]


@every_kind
def test_M02_a_server_error_that_stays_comes_back_and_the_payment_stays_open(seller: PaidServer, kind: str) -> None:
    seller.script["/v2/a"] = ["502"] * 3
    paying = payer()
    answer = call(paying, kind, seller.url + "/v2/a")
    info = payment_of(answer)
    assert (answer.status_code, answer.content) == (502, b"bad gateway")
    assert info is not None
    assert not info.verified
    assert [row.reference for row in paying.payments(only_open=True)] == [info.reference]
    assert call(paying, kind, seller.url + "/v2/a").status_code == 200
    assert len(seller.settled) == 1


@every_kind
def test_M02_a_body_that_breaks_leaves_the_payment_open_for_the_next_try(seller: PaidServer, kind: str) -> None:
    seller.script["/v2/a"] = ["break"]
    paying = payer()
    family = httpx2 if kind.startswith("httpx2") else httpx
    with pytest.raises(family.TransportError) as caught:
        call(paying, kind, seller.url + "/v2/a")
    (row,) = paying.payments(only_open=True)
    assert any(row.reference in note for note in caught.value.__notes__)
    assert call(paying, kind, seller.url + "/v2/a").content == b"goods hi"
    assert len(seller.settled) == 1


def test_M02_another_body_or_method_is_another_call(seller: PaidServer) -> None:
    seller.script["/v2/a"] = ["502"] * 3
    paying = payer()
    call(paying, "httpx", seller.url + "/v2/a", b"one")
    call(paying, "httpx", seller.url + "/v2/a", b"two")
    with client_of(paying, "httpx") as client:
        client.get(seller.url + "/v2/a?x=1")
    assert len(seller.settled) == 3


def test_a_status_that_the_seller_does_not_charge_for_leaves_the_payment_good(seller: PaidServer) -> None:
    seller.script["/v2/a"] = ["422"]
    paying = payer()
    assert call(paying, "httpx", seller.url + "/v2/a").status_code == 422
    assert call(paying, "httpx", seller.url + "/v2/a").status_code == 200
    assert len(seller.settled) == 1


def test_an_error_without_a_receipt_leaves_the_payment_open_and_unsettled(seller: PaidServer) -> None:
    seller.script["/v2/a"] = ["404"]
    paying = payer()
    assert call(paying, "httpx", seller.url + "/v2/a").status_code == 404
    assert [row.state for row in paying.payments()] == ["refused"]
    assert call(paying, "httpx", seller.url + "/v2/a").status_code == 200
    assert len(paying.payments()) == 1


@every_kind
def test_403_closes_the_payment_once_an_sdk_has_done_with_retrying(seller: PaidServer, kind: str) -> None:
    seller.script["/v2/a"] = ["403", "403"]
    now = [1_800_000_000.0]
    paying = payer(clock=lambda: now[0])
    for _ in range(2):
        assert call(paying, kind, seller.url + "/v2/a").status_code == 403
    assert [row.state for row in paying.payments()] == ["used"]
    now[0] += 151
    assert call(paying, kind, seller.url + "/v2/a").status_code == 200
    assert [row.state for row in paying.payments()] == ["used", "accepted"]


@pytest.mark.parametrize("fault", ["404", "refuse"])
def test_a_refused_payment_gives_its_request_free_when_it_can_not_land_any_more(seller: PaidServer, fault: str) -> None:
    seller.script["/v2/a"] = [fault] * 3
    now = [1_800_000_000.0]
    paying = payer(clock=lambda: now[0], limits=Limits(per_day="$0.02"))
    for wait in (0, 30, 31):
        now[0] += wait
        with contextlib.suppress(PaymentNotAccepted):
            call(paying, "httpx", seller.url + "/v2/a")
    assert len({seen.payment for seen in seller.paid}) == 1
    assert call(paying, "httpx", seller.url + "/v2/a").status_code == 200
    assert [row.state for row in paying.payments()] == ["released", "accepted"]
    assert str(paying.spent_today()) == "$0.020000"  # that the first did not move is the seller's word


def test_a_payment_in_doubt_is_still_shown_after_it_can_not_land_any_more(seller: PaidServer) -> None:
    seller.script["/v2/a"] = ["drop"] * 3
    now = [1_800_000_000.0]
    paying = payer(clock=lambda: now[0])
    with pytest.raises(PaymentOutcomeUnknown):
        call(paying, "httpx", seller.url + "/v2/a")
    now[0] += 3000
    info = payment_of(call(paying, "httpx", seller.url + "/v2/a"))
    assert info is not None
    assert info.replayed
    assert len(seller.settled) == 1


def test_a_payment_that_is_given_up_is_not_shown_again(seller: PaidServer) -> None:
    seller.script["/v2/a"] = ["502"] * 3
    paying = payer()
    call(paying, "httpx", seller.url + "/v2/a")
    (row,) = paying.payments(only_open=True)
    paying.give_up(row.reference)
    assert paying.payments(only_open=True) == []
    assert call(paying, "httpx", seller.url + "/v2/a").status_code == 200
    assert len(seller.settled) == 2


@every_kind
def test_a_server_that_was_never_reached_gives_its_own_error(kind: str) -> None:
    family = httpx2 if kind.startswith("httpx2") else httpx
    with serving() as seller:
        paying = payer()
        gone = seller.url
    with pytest.raises(family.ConnectError):
        call(paying, kind, gone + "/v2/a")
    assert paying.payments() == []


def test_a_payment_that_certainly_never_left_gives_the_transports_own_error() -> None:
    challenge = x402.encode_header({"x402Version": 2, "accepts": [entry()]})

    def answer(request: httpx.Request) -> httpx.Response:
        if "payment-signature" in request.headers:
            raise httpx.ConnectError("gone")
        return httpx.Response(402, headers={"payment-required": challenge})

    paying = payer()
    with pytest.raises(httpx.ConnectError):
        paying.transport(httpx.MockTransport(answer)).handle_request(httpx.Request("GET", "http://127.0.0.1/"))
    assert [row.state for row in paying.payments()] == ["refused"]


def test_I12_the_paid_leg_waits_longer_than_the_clients_own_timeout(seller: PaidServer) -> None:
    seller.script["/v2/a"] = ["hang"]
    seller.hang = 0.5
    answer = call(payer(retries=0), "httpx", seller.url + "/v2/a", timeout=0.2)
    assert answer.content == b"goods hi"
    assert len(seller.paid) == 1


def test_I12_a_longer_timeout_and_none_stay_as_they_are() -> None:
    challenge = x402.encode_header({"x402Version": 2, "accepts": [entry()]})
    seen: list[Any] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request.extensions["timeout"].get("read"))
        return httpx.Response(
            200 if "payment-signature" in request.headers else 402, headers={"payment-required": challenge}
        )

    for timeout in (60.0, 5.0, None):
        with httpx.Client(transport=payer().transport(httpx.MockTransport(answer)), timeout=timeout) as client:
            client.get("http://127.0.0.1/")
    assert seen == [60.0, 60.0, 5.0, 35.0, None, None]


# A second 402


@every_kind
def test_M01_a_402_after_a_payment_never_signs_again(seller: PaidServer, kind: str) -> None:
    seller.script["/v2/a"] = ["lie", "lie"]
    paying = payer()
    for _ in range(2):
        with pytest.raises(PaymentNotAccepted, match="settled, and asked for more"):
            call(paying, kind, seller.url + "/v2/a")
    assert len(seller.settled) == 1
    assert call(paying, kind, seller.url + "/v2/a").status_code == 200
    assert len(seller.settled) == 1


@every_kind
def test_M07_with_two_signatures_allowed_the_error_names_both(seller: PaidServer, kind: str) -> None:
    seller.script["/v2/a"] = ["refuse"] * 5
    paying = payer(max_signatures=2)
    with pytest.raises(PaymentNotAccepted, match="quote_expired") as caught:
        call(paying, kind, seller.url + "/v2/a")
    references = [row.reference for row in paying.payments()]
    assert len(references) == 2
    assert all(reference in str(caught.value) for reference in references)
    assert len(seller.paid) == 2


def test_M07_a_second_signature_goes_through_the_policy_again(seller: PaidServer) -> None:
    seller.script["/v2/a"] = ["refuse"]
    asked: list[int] = []

    def approve(offer: Proposal) -> bool:
        asked.append(offer.amount)
        return True

    paying = payer(max_signatures=2, approve=approve)
    assert call(paying, "httpx", seller.url + "/v2/a").status_code == 200
    assert asked == [10000, 10000]
    assert [row.state for row in paying.payments()] == ["refused", "accepted"]


@every_kind
def test_M01_a_402_without_a_challenge_after_a_payment_is_no_certain_refusal(seller: PaidServer, kind: str) -> None:
    seller.script["/v2/a"] = ["bare"]
    paying = payer(max_signatures=2)
    with pytest.raises(PaymentOutcomeUnknown, match="settlement_pending"):
        call(paying, kind, seller.url + "/v2/a")
    assert [row.state for row in paying.payments()] == ["unknown"]
    assert call(paying, kind, seller.url + "/v2/a").status_code == 200
    assert len(seller.settled) == 1


def test_M01_a_402_that_says_that_the_payment_is_used_is_no_certain_refusal(seller: PaidServer) -> None:
    seller.script["/v2/a"] = ["used"]
    paying = payer(max_signatures=2)
    with pytest.raises(PaymentOutcomeUnknown, match="already_used"):
        call(paying, "httpx", seller.url + "/v2/a")
    assert len(seller.settled) == 1


def test_M07_after_a_lost_answer_a_402_leads_to_no_second_signature(seller: PaidServer) -> None:
    seller.script["/v2/a"] = ["drop", "lie"]
    paying = payer(max_signatures=2)
    with pytest.raises(PaymentNotAccepted):
        call(paying, "httpx", seller.url + "/v2/a")
    assert [row.state for row in paying.payments()] == ["unknown"]
    assert len(seller.settled) == 1


# Redirects


@every_kind
def test_M06_the_header_is_not_carried_to_another_origin(seller: PaidServer, kind: str) -> None:
    with serving() as other:
        seller.elsewhere = other.url + "/v2/other"
        with pytest.raises(PolicyRefused, match="redirected"):
            call(payer(), kind, seller.url + "/away/a", follow_redirects=True)
        assert [seen.payment for seen in other.seen] == [""]
        allowed = Limits(hosts=["127.0.0.1"])
        answer = call(payer(limits=allowed), kind, seller.url + "/away/a", follow_redirects=True)
        assert payment_of(answer) is not None
        assert len(other.settled) == 1


@every_kind
def test_M06_a_paid_answer_that_redirects_takes_no_payment_along(seller: PaidServer, kind: str) -> None:
    with serving() as other:
        seller.script["/v2/a"] = ["moved"]
        seller.elsewhere = other.url + "/v2/other"
        with pytest.raises(PolicyRefused, match="redirected"):
            call(payer(), kind, seller.url + "/v2/a", follow_redirects=True)
        assert [seen.payment for seen in other.seen] == [""]
        assert "payment-signature" not in other.seen[0].headers


@every_kind
def test_a_redirect_within_the_origin_is_paid_where_it_leads(seller: PaidServer, kind: str) -> None:
    answer = call(payer(), kind, seller.url + "/redirect/v2/b", follow_redirects=True)
    assert answer.content == b"goods hi"
    assert [seen.path for seen in seller.paid] == ["/v2/b"]


def test_M06_a_host_that_is_not_allowed_is_not_paid(seller: PaidServer) -> None:
    with pytest.raises(PolicyRefused, match=r"Limits\.hosts"):
        call(payer(limits=Limits(hosts=["api.example.com"])), "httpx", seller.url + "/v2/a")
    assert seller.paid == []


# Receipts


@pytest.mark.parametrize(
    ("action", "problem"),
    [("forged", "another amount"), ("failed", "it failed"), ("silent", "no readable receipt")],
)
def test_M10_an_odd_receipt_marks_the_call_unverified(seller: PaidServer, action: str, problem: str) -> None:
    seller.script["/v2/a"] = [action]
    paying = payer()
    info = payment_of(call(paying, "httpx", seller.url + "/v2/a"))
    assert info is not None
    assert not info.verified
    assert problem in info.problem
    assert [row.state for row in paying.payments()] == ["accepted"]


# Bodies


@every_kind
def test_M11_a_stream_of_unknown_length_is_refused_before_any_io(seller: PaidServer, kind: str) -> None:
    read: list[bytes] = []

    def chunks() -> Iterator[bytes]:
        read.append(b"a")
        yield b"a"

    async def async_chunks() -> AsyncIterator[bytes]:
        read.append(b"a")
        yield b"a"

    body = async_chunks() if kind.endswith("async") else chunks()
    with pytest.raises(UnreplayableBody):
        call(payer(), kind, seller.url + "/v2/a", body)
    assert (read, seller.seen) == ([], [])


@every_kind
def test_M11_a_stream_of_short_known_length_is_buffered_and_sent_whole_twice(seller: PaidServer, kind: str) -> None:
    def chunks() -> Iterator[bytes]:
        yield b"ab"
        yield b"cd"

    async def async_chunks() -> AsyncIterator[bytes]:
        yield b"ab"
        yield b"cd"

    body = async_chunks() if kind.endswith("async") else chunks()
    answer = call(payer(), kind, seller.url + "/v2/a", body, headers={"content-length": "4"})
    assert answer.content == b"goods abcd"
    assert [seen.body for seen in seller.seen] == [b"abcd", b"abcd"]


def test_M11_a_multipart_upload_is_sent_whole_twice(seller: PaidServer) -> None:
    with client_of(payer(), "httpx") as client:
        answer = client.post(seller.url + "/v2/a", files={"file": ("a.txt", b"content")})
    first, second = (seen.body for seen in seller.seen)
    assert answer.status_code == 200
    assert first == second
    assert b"content" in first


def test_M11_a_stream_to_a_host_that_is_never_paid_passes(seller: PaidServer) -> None:
    answer = call(payer(limits=Limits(hosts=["elsewhere"])), "httpx", seller.url + "/free/a", iter([b"a", b"b"]))
    assert answer.content == b"free"
    assert seller.seen[0].body == b"ab"


# Interruption


async def test_M12_a_cancelled_task_says_that_the_outcome_is_unknown(seller: PaidServer) -> None:
    seller.script["/v2/a"] = ["wait"]
    paying = payer()
    async with httpx.AsyncClient(transport=paying.async_transport()) as client:
        task = asyncio.create_task(client.post(seller.url + "/v2/a", content=b"hi"))
        await asyncio.to_thread(seller.started.wait, 10)
        task.cancel()
        with pytest.raises(asyncio.CancelledError) as caught:
            await task
        unknown = caught.value.__cause__
        assert isinstance(unknown, PaymentOutcomeUnknown)
        assert any(unknown.reference in note for note in caught.value.__notes__)
        assert [row.state for row in paying.payments()] == ["unknown"]
        seller.released.set()
        answer = await client.post(seller.url + "/v2/a", content=b"hi")
    assert answer.content == b"goods hi"
    assert len(seller.settled) == 1


async def test_M12_a_timeout_scope_around_the_call_leaves_the_payment_open(seller: PaidServer) -> None:
    seller.script["/v2/a"] = ["wait"]
    paying = payer()
    async with httpx2.AsyncClient(transport=paying.async_httpx2_transport()) as client:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.5):
                await client.post(seller.url + "/v2/a", content=b"hi")
    seller.released.set()
    assert [row.state for row in paying.payments()] == ["unknown"]


def test_M12_ctrl_c_propagates_with_the_reference() -> None:
    challenge = x402.encode_header({"x402Version": 2, "accepts": [entry()]})

    def answer(request: httpx.Request) -> httpx.Response:
        if "payment-signature" in request.headers:
            raise KeyboardInterrupt
        return httpx.Response(402, headers={"payment-required": challenge})

    paying = payer()
    with pytest.raises(KeyboardInterrupt) as caught:
        paying.transport(httpx.MockTransport(answer)).handle_request(httpx.Request("GET", "http://127.0.0.1/"))
    assert isinstance(caught.value.__cause__, PaymentOutcomeUnknown)
    assert [row.state for row in paying.payments()] == ["unknown"]


def test_M12_ctrl_c_while_signing_leaves_nothing_in_use() -> None:
    class Slow:
        address = ADDRESS

        def sign_typed_data(self, domain_data: Any, message_types: Any, message_data: Any) -> Any:
            raise KeyboardInterrupt

    challenge = x402.encode_header({"x402Version": 2, "accepts": [entry()]})
    paying = Payer(evm_account=Slow(), allow_insecure=True)
    transport = paying.transport(
        httpx.MockTransport(lambda _: httpx.Response(402, headers={"payment-required": challenge}))
    )
    with pytest.raises(KeyboardInterrupt) as caught:
        transport.handle_request(httpx.Request("GET", "http://127.0.0.1/"))
    assert caught.value.__cause__ is None
    assert paying.payments() == []


def test_M12_an_answer_that_nobody_wants_to_read_is_an_accepted_one(seller: PaidServer) -> None:
    paying = payer()
    with client_of(paying, "httpx") as client, client.stream("POST", seller.url + "/v2/a") as answer:
        assert answer.status_code == 200
        assert [row.state for row in paying.payments()] == ["signed"]
    assert [row.state for row in paying.payments()] == ["accepted"]


# Concurrency and transports


def test_two_identical_calls_at_once_do_not_share_a_payment(seller: PaidServer) -> None:
    seller.script["/v2/a"] = ["wait", "wait"]
    paying = payer()
    answers: list[Any] = []
    with client_of(paying, "httpx") as client:
        threads = [
            threading.Thread(target=lambda: answers.append(client.post(seller.url + "/v2/a", content=b"hi")))
            for _ in range(2)
        ]
        for thread in threads:
            thread.start()
        while len(seller.paid) < 2:
            threads[0].join(0.01)
        seller.released.set()
        for thread in threads:
            thread.join()
    assert [answer.content for answer in answers] == [b"goods hi"] * 2
    assert len(seller.settled) == 2


async def test_sixteen_calls_at_once_in_one_loop(seller: PaidServer) -> None:
    paying = payer()
    async with httpx.AsyncClient(transport=paying.async_transport()) as client:
        urls = [f"{seller.url}/v2/{i}" for i in range(16)]
        answers = await asyncio.gather(*(client.post(url, content=b"hi") for url in urls))
    assert {answer.status_code for answer in answers} == {200}
    assert len(seller.settled) == 16
    assert str(paying.spent_today()) == "$0.160000"


def test_closing_the_transport_closes_the_inner_one() -> None:
    closed: list[str] = []

    class Inner(httpx.HTTPTransport):
        def close(self) -> None:
            closed.append("sync")
            super().close()

    class AsyncInner(httpx2.AsyncHTTPTransport):
        async def aclose(self) -> None:
            closed.append("async")
            await super().aclose()

    async def use() -> None:
        async with httpx2.AsyncClient(transport=payer().async_httpx2_transport(AsyncInner())):
            pass

    with httpx.Client(transport=payer().transport(Inner())):
        pass
    asyncio.run(use())
    assert closed == ["sync", "async"]
