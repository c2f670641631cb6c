"""A payment that is used up without reaching the seller is never answered with an invitation to pay again."""

from __future__ import annotations

from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send

from tests.support.asking import opened
from x402kit.model import Outcome

MISMATCH = "invalid_exact_evm_transfer_event_mismatch"


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    await PlainTextResponse("goods")(scope, receive, send)


async def test_B12_a_spent_payment_that_did_not_reach_us_is_403_whoever_shows_it_again() -> None:
    async with opened() as shop:
        shop.open(app, {"GET /goods": "$0.01"})
        payment = await shop.payment("GET", "/goods")
        shop.rail.script["send"] = [Outcome("failed", MISMATCH, "0xspent", spent=True)]
        first = await shop.ask("GET", "/goods", {"PAYMENT-SIGNATURE": payment.v2()})
        again = await shop.ask("GET", "/goods", {"PAYMENT-SIGNATURE": payment.v2()})
        other = await shop.ask("GET", "/goods", {"X-PAYMENT": payment.v1()})
        assert [each.status for each in (first, again, other)] == [403, 403, 403]
        assert first.reason == MISMATCH
        assert [each.header("PAYMENT-REQUIRED") for each in (first, again, other)] == ["", "", ""]
        assert shop.rail.calls["send"] == 1
        claim = await shop.claim(payment)
        assert (claim.state, claim.spent, claim.reason) == ("failed", 1, MISMATCH)
