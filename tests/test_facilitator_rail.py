"""A seller who settles through a facilitator: real HTTP, a real chain behind it, and every way to lose an answer."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pytest

from tests.support.evm_payments import PAY_TO, PRICE, signed_payload
from tests.support.facilitators import BEARER, Front, Shop, facilitating, shop
from tests.support.faulty_facilitator import DROPPED, HTML, HTML_502, LOST, Fault
from tests.support.serving import free_port, serving
from x402kit.devnet import EvmDevnet
from x402kit.errors import ConfigError, PaymentRefused, PaymentUsed, RailUnavailable
from x402kit.model import Json, PaymentPayload
from x402kit.networks import Base, facilitator_client
from x402kit.networks.evm_chain import EvmRail
from x402kit.networks.facilitator import FacilitatorRail
from x402kit.networks.facilitator_wire import supported_kind

NETWORK = "eip155:8453"
USED = {"success": False, "errorReason": "invalid_exact_evm_nonce_already_used", "transaction": "", "network": NETWORK}
A_HASH = "0x" + "ab" * 32


@pytest.fixture
def front(chain: EvmDevnet, tmp_path: Path) -> Generator[Front]:
    with facilitating(chain, tmp_path / "facilitator.db") as made:
        yield made


def saying(**changes: Any) -> Callable[[Json], Json]:
    """Change an answer's fields; None takes one away."""
    return lambda answer: {key: value for key, value in {**answer, **changes}.items() if value is not None}


def settlements(chain: EvmDevnet) -> int:
    """Transactions that the facilitator's wallet has sent."""
    return int(chain.rpc("eth_getTransactionCount", chain.accounts[0].address, "latest"), 16)


# The good case, and what is sent


async def test_a_payment_is_verified_and_settled_by_the_facilitator(chain: EvmDevnet, front: Front) -> None:
    async with shop(chain, front.url) as seller:
        payment = seller.authorize()
        await seller.rail.ready()
        await seller.rail.verify(payment, seller.offer)
        assert seller.earned == 0
        _, outcome = await seller.send(payment)
        assert (outcome.state, outcome.final) == ("settled", True)
        assert chain.rpc("eth_getTransactionReceipt", outcome.reference)["status"] == "0x1"
        assert seller.earned == PRICE


async def test_any_dialect_is_passed_on_in_the_published_shape(chain: EvmDevnet, front: Front) -> None:
    """Numeric times, lower-case addresses and v 0 or 1 come from Katana-shaped and old clients."""
    made = signed_payload(chain.accounts[1])
    fields = made["authorization"]
    fields.update(validAfter=int(fields["validAfter"]), validBefore=int(fields["validBefore"]))
    made["signature"] = made["signature"][:-2] + f"{int(made['signature'][-2:], 16) - 27:02x}"
    async with shop(chain, front.url) as seller:
        await seller.rail.verify(seller.authorize(made), seller.offer)
    sent = front.faulty.of("verify")[0].json
    assert sent["paymentPayload"]["accepted"] == sent["paymentRequirements"]
    assert set(sent["paymentRequirements"]) == {
        *("scheme", "network", "amount", "asset", "payTo", "maxTimeoutSeconds", "extra"),
    }
    passed = sent["paymentPayload"]["payload"]
    assert {type(value) for value in passed["authorization"].values()} == {str}
    assert passed["signature"][-2:] in ("1b", "1c")
    assert passed["authorization"]["from"] == chain.accounts[1].address


async def test_a_facilitator_of_v1_alone_is_spoken_to_in_v1(chain: EvmDevnet, front: Front) -> None:
    kinds = [{"x402Version": 1, "scheme": "exact", "network": "base"}]
    front.faulty.faults["supported"] = [Fault(json={"kinds": kinds})]
    async with shop(chain, front.url) as seller:
        payment = seller.authorize()
        await seller.rail.verify(payment, seller.offer)
        _, outcome = await seller.send(payment)
    assert outcome.state == "settled"
    sent = front.faulty.of("settle")[0].json
    assert sent["x402Version"] == sent["paymentPayload"]["x402Version"] == 1
    assert sent["paymentPayload"]["network"] == sent["paymentRequirements"]["network"] == "base"
    assert sent["paymentRequirements"]["maxAmountRequired"] == str(PRICE)


async def test_headers_may_be_made_for_each_endpoint(chain: EvmDevnet, front: Front) -> None:
    asked: list[str] = []

    def plain(endpoint: str) -> dict[str, str]:
        asked.append(endpoint)
        return BEARER

    async def fresh(endpoint: str) -> dict[str, str]:
        return {**plain(endpoint), "X-Endpoint": endpoint}

    for headers in (plain, fresh):
        async with shop(chain, front.url, headers=headers) as seller:
            payment = seller.authorize()
            await seller.rail.verify(payment, seller.offer)
            assert (await seller.send(payment))[1].state == "settled"
    assert asked == ["supported", "verify", "settle"] * 2
    assert front.faulty.of("settle")[1].headers["x-endpoint"] == "settle"


@pytest.mark.parametrize("made", [{"Authorization": "a\r\nX-More: b"}, {"Authorization": 7}, None])
async def test_headers_that_cannot_be_made_mean_that_nothing_is_sent(
    chain: EvmDevnet, front: Front, made: Any, caplog: pytest.LogCaptureFixture
) -> None:
    def failing(endpoint: str) -> Any:
        if endpoint == "supported":
            return BEARER
        if made is None:
            raise OSError("the key at /etc/secret is gone")
        return made

    async with shop(chain, front.url, headers=failing) as seller:
        with pytest.raises(RailUnavailable):
            await seller.rail.verify(seller.authorize(), seller.offer)
        _, outcome = await seller.send()
    assert (outcome.state, outcome.never_sent) == ("failed", True)
    assert front.faulty.of("settle") == []
    assert "ALERT" in caplog.text
    assert "secret" not in caplog.text


# Set-up


async def test_a_facilitator_that_does_not_serve_us_is_an_error_at_start(chain: EvmDevnet, front: Front) -> None:
    other = {"kinds": [{"x402Version": 2, "scheme": "exact", "network": "eip155:84532"}]}
    for fault in (Fault(json=other), Fault(json={}), Fault(json=[]), Fault(json={"kinds": [1]}), Fault(status=404)):
        front.faulty.faults["supported"] = [fault]
        with pytest.raises(ConfigError):
            async with shop(chain, front.url):
                pass


async def test_refused_credentials_are_an_error_at_start(
    chain: EvmDevnet, front: Front, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(ConfigError):
        async with shop(chain, front.url, headers={"Authorization": "Bearer not that one, no"}):
            pass
    assert "ALERT" in caplog.text


@pytest.mark.parametrize(
    ("kind", "version"),
    [
        ({"x402Version": 2, "scheme": "exact", "network": NETWORK}, 2),
        ({"x402Version": 2, "scheme": "exact", "network": "eip155:*"}, 2),
        ({"x402Version": 1, "scheme": "exact", "network": "base"}, 1),
        ({"x402Version": 2, "scheme": "upto", "network": NETWORK}, 0),
        ({"x402Version": 2, "scheme": "exact", "network": "eip155:84530"}, 0),
        ({"x402Version": 2, "scheme": "exact", "network": "solana:*"}, 0),
        ({"x402Version": 3, "scheme": "exact", "network": NETWORK}, 0),
        ({"x402Version": 2, "scheme": "exact"}, 0),
    ],
)
def test_which_kinds_are_ours(kind: Json, version: int) -> None:
    assert supported_kind({"kinds": [kind]}, "exact", NETWORK)[0] == version
    assert supported_kind({"kinds": kind}, "exact", NETWORK)[0] == 0


async def test_a_facilitator_that_is_down_at_start_is_asked_again_before_a_payment(
    chain: EvmDevnet, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    port = free_port()
    async with shop(chain, f"http://127.0.0.1:{port}") as seller:
        assert warned(caplog) == [
            "the facilitator's /supported: no connection; payments are answered 503 until it is back"
        ]
        with pytest.raises(RailUnavailable):
            await seller.rail.ready()
        with facilitating(chain, tmp_path / "facilitator.db", port=port) as front:
            front.faulty.faults["supported"] = [Fault(json={"kinds": []})]
            with pytest.raises(RailUnavailable):
                await seller.rail.ready()
            await seller.rail.ready()
            assert (await seller.send())[1].state == "settled"


def warned(caplog: pytest.LogCaptureFixture) -> list[str]:
    records = [record for record in caplog.records if record.name.startswith("x402kit")]
    return [record.getMessage() for record in records if record.levelno >= logging.WARNING]


@pytest.mark.parametrize(
    ("fault", "said"),
    [(LOST, "no usable answer"), (HTML_502, "no usable answer"), (Fault(status=503, json={}), "status 503")],
)
async def test_I02_a_settle_without_an_answer_is_told_as_what_it_is(
    chain: EvmDevnet, front: Front, fault: Fault, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with shop(chain, front.url) as seller:
        front.faulty.faults["settle"] = [fault]
        await seller.send()
    what = "this payment's outcome is not known (504), and others are answered 503 until it is back"
    assert f"the facilitator's /settle: {said}; {what}" in warned(caplog)


# K05: only the configured URL


@pytest.mark.parametrize(
    "url",
    [
        *("http://facilitator.example", "http://10.0.0.1/x402", "ftp://facilitator.example", "facilitator.example"),
        *("https://user:word@facilitator.example", "https://f.example/?key=1", "https://f.example/#a", ""),
    ],
)
def test_K05_an_unsafe_facilitator_url_is_refused(url: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Base(pay_to=PAY_TO, facilitator=url)
    assert "word" not in str(caught.value)


def test_K05_plain_http_is_for_this_machine_or_on_request() -> None:
    base = EvmRail(NETWORK, pay_to=PAY_TO)
    for url in ("http://127.0.0.1:1", "http://[::1]:1/x", "http://localhost", "https://facilitator.example/v2/x402"):
        FacilitatorRail(base, url)
    FacilitatorRail(base, "http://facilitator.internal", allow_insecure=True)


async def test_K05_no_redirect_is_followed(chain: EvmDevnet, front: Front) -> None:
    elsewhere: list[str] = []

    async def other(scope: Any, receive: Any, send: Any) -> None:
        elsewhere.append(scope["path"])

    with serving(other, lifespan=False) as url:
        away = Fault(forward=False, status=307, location=f"{url}/settle", json={"isValid": True, "success": True})
        async with shop(chain, front.url) as seller:
            front.faulty.faults |= {"verify": [away], "settle": [away]}
            with pytest.raises(RailUnavailable):
                await seller.rail.verify(seller.authorize(), seller.offer)
            assert (await seller.send())[1].state == "pending"
    assert elsewhere == []


async def test_K05_what_a_payment_names_is_never_asked(chain: EvmDevnet, front: Front) -> None:
    """The facilitator's URL is the operator's; nothing in a payment is an address to call."""
    async with shop(chain, front.url) as seller:
        raw: Json = {"facilitator": "http://127.0.0.1:9", "resource": {"url": "http://127.0.0.1:9"}}
        made = PaymentPayload(2, "exact", NETWORK, signed_payload(chain.accounts[1]), raw=raw, extensions=raw)
        payment = seller.rail.parse(made, seller.offer._replace(extra={"facilitator": "http://127.0.0.1:9"}))
        await seller.rail.verify(payment, seller.offer)
    assert b":9" not in front.faulty.of("verify")[0].data


# I-01: before anything is sent


@pytest.mark.parametrize(
    "fault",
    [
        *(DROPPED, HTML_502, Fault(status=429), Fault(status=500, json={"isValid": False})),
        *(Fault(body=b"{"), Fault(json=[]), Fault(json={}), Fault(json={"isValid": "true"}), Fault(json="yes")),
        Fault(status=202, json={"isValid": True}),
        Fault(json={"isValid": True, "payer": PAY_TO}),
        Fault(json={"isValid": False, "invalidReason": "unexpected_verify_error"}),
        Fault(status=401, json={"isValid": False, "invalidReason": "unauthorized"}),
        Fault(body=b" " * 2_000_000),
        Fault(body=b"[" * 100_000),
    ],
)
async def test_I01_no_clear_answer_at_verify_is_503(chain: EvmDevnet, front: Front, fault: Fault) -> None:
    async with shop(chain, front.url) as seller:
        front.faulty.faults["verify"] = [fault]
        with pytest.raises(RailUnavailable) as caught:
            await seller.rail.verify(seller.authorize(), seller.offer)
    error = caught.value
    assert (error.status, error.money, error.reason) == (503, "no", "facilitator_unavailable")
    assert error.retry_after
    assert front.faulty.of("settle") == []


async def test_I01_a_slow_verify_is_503(chain: EvmDevnet, front: Front) -> None:
    async with shop(chain, front.url, seconds=0.2) as seller:
        front.faulty.faults["verify"] = [Fault(delay=1)]
        with pytest.raises(RailUnavailable):
            await seller.rail.verify(seller.authorize(), seller.offer)


async def test_I01_a_facilitator_that_keeps_failing_is_left_alone_for_a_while(
    chain: EvmDevnet, front: Front, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(facilitator_client, "PAUSE_SECONDS", 0.3)
    async with shop(chain, front.url) as seller:
        front.faulty.faults["verify"] = [HTML_502, Fault(), HTML_502, HTML_502, DROPPED, DROPPED]
        payment = seller.authorize()
        await _refused_by(seller, payment)
        await seller.rail.verify(payment, seller.offer)
        for _ in range(3):
            await seller.rail.ready()
            await _refused_by(seller, payment)
        for _ in range(3):
            with pytest.raises(RailUnavailable):
                await seller.rail.ready()
        claim = (await seller.prepare(payment))[1]
        assert (await seller.rail.outcome(claim)).state == "pending"
        assert len(front.faulty.of("verify")) == 5
        assert front.faulty.of("settle") == []
        time.sleep(0.35)  # noqa: ASYNC251  # nothing else runs here
        await seller.rail.ready()
        await _refused_by(seller, payment)  # still down: at once for as long again
        with pytest.raises(RailUnavailable):
            await seller.rail.ready()


async def _refused_by(seller: Shop, payment: Any) -> None:
    with pytest.raises(RailUnavailable):
        await seller.rail.verify(payment, seller.offer)


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("insufficient_funds", "insufficient_funds"),
        ("Invalid_Exact_EVM_Payload_Signature", "invalid_exact_evm_payload_signature"),
        ("rpc error at https://node.example/key", "facilitator_refused"),
        ("x" * 81, "facilitator_refused"),
        ("line\nbreak", "facilitator_refused"),
        (None, "facilitator_refused"),
        (7, "facilitator_refused"),
    ],
)
async def test_a_refusal_is_402_and_shows_no_text_of_theirs(
    chain: EvmDevnet, front: Front, said: Any, shown: str
) -> None:
    async with shop(chain, front.url) as seller:
        for status in (200, 400):
            front.faulty.faults["verify"] = [Fault(status=status, json={"isValid": False, "invalidReason": said})]
            with pytest.raises(PaymentRefused) as caught:
                await seller.rail.verify(seller.authorize(), seller.offer)
            assert caught.value.reason == shown


async def test_what_the_facilitator_finds_on_chain_is_passed_on(chain: EvmDevnet, front: Front) -> None:
    broke = chain.accounts[0]
    async with shop(chain, front.url) as seller:
        with pytest.raises(PaymentRefused, match="invalid_exact_evm_insufficient_balance"):
            await seller.rail.verify(seller.authorize(signed_payload(broke)), seller.offer)


# I-02, I-03, I-05: settled, and the answer is no answer


async def test_I02_a_settle_that_takes_too_long_is_pending_and_then_found(chain: EvmDevnet, front: Front) -> None:
    for sees in (False, True):
        front.faulty.faults["settle"] = [Fault(delay=1)]
        async with shop(chain, front.url, sees=sees, settle_seconds=0.3) as seller:
            claim, outcome = await seller.send()
            assert outcome.state == "pending"
            outcome = await seller.rail.wait(claim, 5)
            assert outcome.state == "settled"
            assert outcome.reference
            assert seller.earned == settlements(chain) * PRICE
    assert settlements(chain) == 2


@pytest.mark.parametrize("sees", [False, True])
@pytest.mark.parametrize(
    "fault",
    [
        *(LOST, HTML_502, Fault(body=HTML), Fault(body=b""), Fault(json=[]), Fault(status=504), Fault(status=403)),
        Fault(status=500, json={"success": False, "errorReason": "insufficient_funds"}),
        Fault(change=saying(success=None)),
        Fault(change=saying(success="true")),
        Fault(change=saying(amount="0.01")),
        Fault(change=saying(success=False, errorReason="unexpected_settle_error")),
        Fault(change=saying(success=False, errorReason="transaction_failed")),
        Fault(change=saying(success=False)),
    ],
)
async def test_I03_settled_and_the_answer_lost_is_pending_never_failed(
    chain: EvmDevnet, front: Front, fault: Fault, sees: bool
) -> None:
    async with shop(chain, front.url, sees=sees) as seller:
        front.faulty.faults["settle"] = [fault]
        claim, outcome = await seller.send()
        assert outcome.state == "pending"
        assert seller.earned == PRICE
        found = await seller.rail.outcome(claim)
        assert found.state == "settled"
        assert found.reference.startswith("0x")
        assert settlements(chain) == 1
    first, *again = front.faulty.of("settle")
    assert [call.data for call in again] == ([] if sees else [first.data])


@pytest.mark.parametrize(
    "fault",
    [
        Fault(forward=False, json={"success": False, "transaction": "", "network": NETWORK}),
        Fault(forward=False, json={"transaction": A_HASH, "network": NETWORK}),
        Fault(forward=False, json={"success": 1, "transaction": A_HASH, "network": NETWORK}),
        Fault(forward=False, json={"success": False, "errorReason": "something new", "network": NETWORK}),
    ],
)
async def test_I05_success_false_without_a_certain_reason_or_missing_is_pending(
    chain: EvmDevnet, front: Front, fault: Fault
) -> None:
    async with shop(chain, front.url) as seller:
        front.faulty.faults["settle"] = [fault]
        assert (await seller.send())[1].state == "pending"


@pytest.mark.parametrize("status", [200, 400])
async def test_I05_a_certain_refusal_with_http_200_is_a_failure(chain: EvmDevnet, front: Front, status: int) -> None:
    said = {"success": False, "errorReason": "insufficient_funds", "transaction": "", "network": NETWORK}
    async with shop(chain, front.url) as seller:
        front.faulty.faults["settle"] = [Fault(forward=False, status=status, json=said)]
        claim, outcome = await seller.send()
        assert (outcome.state, outcome.reason, outcome.never_sent) == ("failed", "insufficient_funds", False)
        # The same words in answer to a repeated call are no proof about the first.
        front.faulty.faults["settle"] = [Fault(forward=False, json=said)]
        assert (await seller.rail.outcome(claim)).state == "pending"


async def test_I05_a_real_refusal_at_settle_is_a_failure(chain: EvmDevnet, front: Front) -> None:
    async with shop(chain, front.url) as seller:
        _, outcome = await seller.send(seller.authorize(signed_payload(chain.accounts[0])))
        assert (outcome.state, outcome.reason) == ("failed", "invalid_exact_evm_insufficient_balance")


async def test_a_refused_connection_at_settle_is_certain_the_first_time_only(chain: EvmDevnet) -> None:
    async with shop(chain, f"http://127.0.0.1:{free_port()}") as seller:
        claim, outcome = await seller.send()
        assert (outcome.state, outcome.never_sent) == ("failed", True)
        assert (await seller.rail.outcome(claim)).state == "pending"


# I-04: it says success


@pytest.mark.parametrize(
    "lie",
    [
        *({"network": "eip155:84532"}, {"network": None}, {"amount": "1"}, {"payer": PAY_TO}),
        *({"transaction": ""}, {"transaction": None}, {"transaction": "<script>"}),
    ],
)
async def test_I04_a_success_that_is_not_about_this_payment_is_pending(
    chain: EvmDevnet, front: Front, lie: Json, caplog: pytest.LogCaptureFixture
) -> None:
    async with shop(chain, front.url) as seller:
        front.faulty.faults["settle"] = [Fault(change=saying(**lie))]
        assert (await seller.send())[1].state == "pending"
    assert "ALERT" in caplog.text


async def test_I04_above_the_cap_a_success_must_be_on_chain(
    chain: EvmDevnet, front: Front, caplog: pytest.LogCaptureFixture
) -> None:
    lie = Fault(forward=False, json={"success": True, "transaction": A_HASH, "network": NETWORK})
    async with shop(chain, front.url, sees=True, check_above=PRICE - 1) as seller:
        front.faulty.faults["settle"] = [lie]
        claim, outcome = await seller.send()
        assert outcome.state == "pending"
        outcome = await seller.rail.wait(claim, 0.5)
        assert outcome.state == "pending"
        assert "ALERT" in caplog.text
        # When the authorization has ended unused, it is certain that it was a lie.
        chain.rpc("evm_increaseTime", 1200)
        chain.mine()
        outcome = await seller.rail.outcome(claim)
        assert (outcome.state, seller.earned) == ("failed", 0)


async def test_I04_somebody_elses_transaction_is_no_proof(chain: EvmDevnet, front: Front) -> None:
    async with shop(chain, front.url, sees=True, check_above=0) as seller:
        _, other = await seller.send()
        front.faulty.faults["settle"] = [
            Fault(forward=False, json={"success": True, "transaction": other.reference, "network": NETWORK})
        ]
        claim, outcome = await seller.send()
        assert outcome.state == "pending"
        assert (await seller.rail.wait(claim, 0.3)).state != "settled"


async def test_I04_a_true_success_above_the_cap_counts_once_seen(chain: EvmDevnet, front: Front) -> None:
    async with shop(chain, front.url, sees=True, check_above=0) as seller:
        claim, outcome = await seller.send()
        assert outcome.state == "pending"
        outcome = await seller.rail.wait(claim, 5)
        assert (outcome.state, outcome.log_index >= 0, outcome.final) == ("settled", True, False)


async def test_I04_by_default_the_cap_is_one_whole_unit(chain: EvmDevnet, front: Front) -> None:
    for price, state in ((1_000_000, "settled"), (1_000_001, "pending")):
        async with shop(chain, front.url, sees=True, price=price) as seller:
            assert (await seller.send(seller.authorize(value=price)))[1].state == state


async def test_I04_below_the_cap_the_word_counts_and_the_chain_is_watched(chain: EvmDevnet, front: Front) -> None:
    async with shop(chain, front.url, sees=True) as seller:
        claim, outcome = await seller.send()
        assert (outcome.state, outcome.final) == ("settled", False)
        seen = await seller.rail.outcome(claim._replace(state="settled"))
        assert (seen.state, seen.block > 0) == ("settled", True)
        chain.mine(40)
        assert (await seller.rail.outcome(claim._replace(state="settled"))).final


# I-06, B05: the nonce is used


async def test_I06_used_after_our_own_lost_answer_counts_once_the_chain_shows_it(
    chain: EvmDevnet, front: Front
) -> None:
    async with shop(chain, front.url, sees=True) as seller:
        front.faulty.faults["settle"] = [Fault(json=USED)]
        claim, outcome = await seller.send()
        assert outcome.state == "pending"
        outcome = await seller.rail.wait(claim, 5)
        assert outcome.state == "settled"
        assert chain.rpc("eth_getTransactionReceipt", outcome.reference)["status"] == "0x1"


async def test_I06_used_without_evidence_is_never_decided(
    chain: EvmDevnet, front: Front, caplog: pytest.LogCaptureFixture
) -> None:
    async with shop(chain, front.url) as seller:
        front.faulty.faults["settle"] = [LOST, *[Fault(forward=False, json=USED)] * 3]
        claim, outcome = await seller.send()
        assert outcome.state == "pending"
        assert (await seller.rail.wait(claim, 20)).state == "pending"
        assert len(front.faulty.of("settle")) == 2, "asking again can't tell more"
        assert "ALERT" not in caplog.text
        late = claim._replace(state="unknown", valid_until=int(time.time()) - 700)
        assert (await seller.rail.outcome(late)).state == "pending"
        assert "ALERT" in caplog.text
        calls = len(front.faulty.of("settle"))
        assert (await seller.rail.outcome(late)).state == "pending"
        assert len(front.faulty.of("settle")) == calls, "once an hour is enough"


@pytest.mark.parametrize("sees", [False, True])
async def test_B05_a_used_nonce_at_verify_is_403_where_the_money_came(
    chain: EvmDevnet, front: Front, sees: bool
) -> None:
    async with shop(chain, front.url, sees=sees) as seller:
        payment = seller.authorize()
        _, outcome = await seller.send(payment)
        with pytest.raises(PaymentUsed) as caught:
            await seller.rail.verify(payment, seller.offer)
        assert caught.value.reference == (outcome.reference if sees else "")


@pytest.mark.parametrize(("sees", "error"), [(False, PaymentUsed), (True, PaymentRefused)])
async def test_B05_a_nonce_used_for_another_is_402_only_if_the_chain_shows_it(
    chain: EvmDevnet, front: Front, sees: bool, error: type[Exception]
) -> None:
    nonce = b"\x07" * 32
    elsewhere = chain.accounts[3].address
    async with shop(chain, front.url, sees=sees) as seller:
        other = Shop(chain, seller.rail, seller.offer._replace(pay_to=elsewhere))
        assert (await other.send(other.authorize(to=elsewhere.lower(), nonce=nonce)))[1].state == "settled"
        with pytest.raises(error):
            await seller.rail.verify(seller.authorize(nonce=nonce), seller.offer)


async def test_B05_a_facilitator_that_says_used_of_an_unused_nonce_is_not_believed(
    chain: EvmDevnet, front: Front
) -> None:
    async with shop(chain, front.url, sees=True) as seller:
        front.faulty.faults["verify"] = [Fault(json={"isValid": False, "invalidReason": "nonce_already_used"})]
        with pytest.raises(RailUnavailable):
            await seller.rail.verify(seller.authorize(), seller.offer)


async def test_B09_an_erc6492_wrapper_reaches_the_facilitator_and_is_refused_there(
    chain: EvmDevnet, front: Front
) -> None:
    made = signed_payload(chain.accounts[1])
    inner = bytes.fromhex(made["signature"][2:])
    words = [
        bytes(12) + b"\x11" * 20,
        (96).to_bytes(32),
        (160).to_bytes(32),
        (4).to_bytes(32),
        b"call".ljust(32, b"\0"),
    ]
    wrapped = b"".join(words) + len(inner).to_bytes(32) + inner.ljust(96, b"\0") + bytes.fromhex("6492" * 16)
    made["signature"] = "0x" + wrapped.hex()
    async with shop(chain, front.url) as seller:
        with pytest.raises(PaymentRefused, match="eip6492_factory_not_allowed"):
            await seller.rail.verify(seller.authorize(made), seller.offer)
    assert settlements(chain) == 0


# settlement_pending, and sending again


async def test_settlement_pending_is_asked_again_once_with_the_very_same_call(chain: EvmDevnet, front: Front) -> None:
    pending = {"success": False, "errorReason": "settlement_pending", "transaction": A_HASH, "network": NETWORK}
    async with shop(chain, front.url) as seller:
        front.faulty.faults["settle"] = [Fault(json=pending)]
        assert (await seller.send())[1].state == "settled"
        first, second = front.faulty.of("settle")
        assert first.data == second.data
        front.faulty.faults["settle"] = [Fault(forward=False, json=pending), HTML_502, LOST]
        claim, outcome = await seller.send()
        assert (outcome.state, outcome.reference) == ("pending", A_HASH)
        assert len(front.faulty.of("settle")) == 4
        assert (await seller.rail.wait(claim, 0.1)).reference == A_HASH


async def test_I07_what_the_facilitator_never_had_is_sent_again_while_it_lives(chain: EvmDevnet, front: Front) -> None:
    async with shop(chain, front.url, sees=True) as seller:
        front.faulty.faults["settle"] = [DROPPED]
        intent, claim = await seller.prepare()
        assert (await seller.rail.send(intent)).state == "pending"
        assert not (await seller.rail.outcome(claim)).resend, "its first answer may still be under way"
        lost = claim._replace(state="unknown")
        assert (await seller.rail.outcome(lost)).resend
        assert not (await seller.rail.outcome(lost._replace(valid_until=int(time.time())))).resend
        await seller.rail.send(intent)
        found = await seller.rail.outcome(lost)
        assert (found.state, found.resend) == ("settled", False)


async def test_confirmations_are_waited_for_where_the_chain_is_seen(chain: EvmDevnet, front: Front) -> None:
    rail = Base(pay_to=PAY_TO, facilitator=front.url, facilitator_headers=BEARER, rpc=chain.rpc_url, confirmations=2)
    assert isinstance(rail, FacilitatorRail)
    seller = Shop(chain, rail)
    try:
        await rail.start()
        claim, outcome = await seller.send()
        assert outcome.state == "pending"
        deep = claim._replace(confirmations=2)
        assert (await rail.wait(deep, 0.3)).state == "pending"
        chain.mine(2)
        assert (await rail.wait(deep, 5)).state == "settled"
    finally:
        await rail.close()


async def test_I11_neither_errors_nor_logs_hold_what_the_facilitator_wrote(
    chain: EvmDevnet, front: Front, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    told = json.dumps({"isValid": False, "invalidReason": "at 10.0.0.7: no", "payer": "10.0.0.7"}).encode()
    shown: list[str] = []
    async with shop(chain, front.url) as seller:
        front.faulty.faults["verify"] = [HTML_502, Fault(body=told)]
        for error in (RailUnavailable, PaymentRefused):
            with pytest.raises(error) as caught:
                await seller.rail.verify(seller.authorize(), seller.offer)
            shown += [repr(caught.value), str(vars(caught.value))]
        front.faulty.faults["settle"] = [HTML_502]
        shown.append(repr((await seller.send())[1]))
    assert "10.0.0.7" not in "".join(shown) + caplog.text
    assert "127.0.0.1" not in "".join(shown)
