"""Group C: one payment shown many times, in every way; real server processes, one ledger, one chain."""

from __future__ import annotations

import signal
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.invariants import check, settled_down
from tests.support.shop import Shop, Shown, at_once, opened
from x402kit.devnet import EvmDevnet
from x402kit.model import KEPT_SECONDS


@pytest.fixture
def shop(chain: EvmDevnet, tmp_path: Path) -> Iterator[Shop]:
    with opened(chain, tmp_path) as made:
        yield made


def statuses(answers: list[Shown]) -> Counter[int]:
    return Counter(answer.status for answer in answers)


def test_C01_twenty_at_once_are_one_run_and_one_settlement(shop: Shop) -> None:
    shop.start(handler=0.2)
    payment = shop.pay()
    answers = shop.show_at_once(payment, 20)
    check(shop)
    assert statuses(answers).keys() <= {200, 409}
    assert sum(answer.fulfilled for answer in answers) == 1
    assert len(shop.runs()) == 1
    assert len(shop.transfers()) == 1
    again = shop.show(payment)
    assert (again.status, again.replayed) == (200, True)
    settled_down(shop)


def test_C02_sixty_four_at_four_processes_are_one_run_and_one_settlement(shop: Shop) -> None:
    shop.start(4, handler=0.1)
    payment = shop.pay()
    answers = shop.show_at_once(payment, 64)
    check(shop)
    assert statuses(answers).keys() <= {200, 409}
    assert sum(answer.fulfilled for answer in answers) == 1
    assert len(shop.runs()) == 1
    assert len(shop.transfers()) == 1
    for server in shop.servers:
        again = shop.show_until_decided(payment, server)
        assert (again.status, again.replayed) == (200, True)
        assert again.json == next(answer.json for answer in answers if answer.fulfilled)
    settled_down(shop)


def test_C02_many_payments_at_four_processes_share_one_wallet(shop: Shop) -> None:
    shop.start(4)
    payments = [shop.pay() for _ in range(12)]
    answers = [answer for payment in payments for answer in shop.show_at_once(payment, 2)]
    assert sum(answer.fulfilled for answer in answers) == len(payments)
    assert len(shop.transfers()) == len(payments)
    settled_down(shop)


def test_C02_a_process_that_slept_through_its_lease_gives_nothing_away(shop: Shop) -> None:
    shop.start(2, handler=0.5)
    sleeper, awake = shop.servers
    payment = shop.pay()

    def slept() -> Shown:
        shop.wait_for(shop.runs)
        sleeper.signal(signal.SIGSTOP)
        time.sleep(2 * shop.setup.lease)
        answer = shop.show_until_decided(payment, awake)
        sleeper.signal(signal.SIGCONT)
        return answer

    late, served = at_once(lambda: shop.show(payment, sleeper), slept)
    assert served.fulfilled
    assert late.status == 409
    assert shop.show(payment, sleeper).replayed
    assert len(shop.transfers()) == 1
    settled_down(shop)


def test_C03_after_a_lost_answer_the_same_one_comes_again(shop: Shop) -> None:
    shop.start()
    payment = shop.pay("/goods?n=1")
    first = shop.show(payment)
    again = shop.show(payment)
    assert again.replayed
    assert (again.status, again.body) == (200, first.body)
    assert again.headers["payment-response"] == first.headers["payment-response"]
    assert again.headers["content-type"] == first.headers["content-type"]
    assert len(shop.runs()) == len(shop.transfers()) == 1
    settled_down(shop)


def test_C03_an_answer_too_long_to_keep_is_acknowledged_and_not_paid_again(shop: Shop) -> None:
    shop.start(keep_bytes=1000)
    payment = shop.pay("/large")
    first, again = shop.show(payment), shop.show(payment)
    assert len(first.body) == 1001
    assert (again.status, again.replayed, again.json["replayed"]) == (200, True, True)
    assert again.headers["payment-response"] == first.headers["payment-response"]
    assert len(shop.runs()) == 1
    settled_down(shop)


@pytest.mark.parametrize("path", ["/fails", "/refuses"])
def test_C04_a_payment_whose_handler_failed_is_served_later_and_settled_once(shop: Shop, path: str) -> None:
    shop.start(fails=2)
    payment = shop.pay(path)
    for status in [500, 500] if path == "/fails" else [404, 404]:
        answer = shop.show(payment)
        assert (answer.status, answer.kept_good) == (status, True)
        assert "payment-response" in answer.headers
        assert shop.state(payment) == "settled"
    assert shop.show(payment).fulfilled
    assert shop.show(payment).replayed
    assert len(shop.transfers()) == 1
    settled_down(shop)


def test_C04_a_handler_that_always_fails_is_not_run_without_end(shop: Shop) -> None:
    shop.start(fails=100)
    payment = shop.pay("/fails")
    codes = [shop.show(payment).status for _ in range(12)]
    assert set(codes) == {500, 403}
    assert len(shop.runs()) == codes.count(500) <= 9
    assert len(shop.transfers()) == 1
    settled_down(shop)


@pytest.mark.parametrize("path", ["/echo", "/priced"])
def test_C05_another_body_with_the_same_payment_is_refused_and_runs_nothing(shop: Shop, path: str) -> None:
    shop.start()
    payment = shop.pay(path, "POST", b'{"n": 1}')
    assert shop.show(payment).body == b'{"n": 1}'
    other = shop.show(payment, body=b'{"n": 2}')
    assert other.status == 403
    assert other.json["title"] == "payment-used"
    assert b'"n": 1' not in other.body
    assert len(shop.runs()) == len(shop.transfers()) == 1
    assert shop.show(payment).body == b'{"n": 1}'
    settled_down(shop)


@pytest.mark.parametrize(
    ("method", "path"), [("GET", "/goods?n=2"), ("GET", "/other"), ("GET", "/dear"), ("HEAD", "/goods?n=1")]
)
def test_C05_another_request_with_the_same_payment_is_refused(shop: Shop, method: str, path: str) -> None:
    shop.start()
    payment = shop.pay("/goods?n=1")
    shop.show(payment)
    assert shop.show(payment, method=method, path=path).status == 403
    assert len(shop.runs()) == len(shop.transfers()) == 1
    settled_down(shop)


def test_C05_while_it_is_worked_on_another_request_is_refused_too(shop: Shop) -> None:
    shop.start(handler=0.5)
    payment = shop.pay()

    def other() -> Shown:
        shop.wait_for(shop.runs)
        return shop.show(payment, path="/other")

    served, refused = at_once(lambda: shop.show(payment), other)
    assert (served.status, refused.status) == (200, 403)
    settled_down(shop)


def test_C06_an_idempotency_key_never_opens_anything(shop: Shop) -> None:
    # The key of a call is its payment; a header of the caller's own choice is the app's to read, and no payment.
    server = shop.start()
    key = {"Idempotency-Key": "k"}
    payment = shop.pay()
    with httpx.Client(base_url=server.url, trust_env=False) as client:
        paid = client.get("/goods", headers={**key, "PAYMENT-SIGNATURE": payment.header})
        assert paid.status_code == 200
        assert client.get("/goods", headers=key).status_code == 402
        again = client.get("/goods", headers={"Idempotency-Key": "other", "PAYMENT-SIGNATURE": payment.header})
    assert (again.status_code, again.headers["payment-replayed"], again.content) == (200, "true", paid.content)
    assert len(shop.runs()) == 1
    check(shop)


@pytest.mark.parametrize("later", [KEPT_SECONDS + 60, 7200 - 60, 7200 + 120, 20_000])
def test_C07_after_any_time_the_payment_buys_nothing_more(shop: Shop, later: int) -> None:
    first = shop.start(final_depth=0)
    payment = shop.pay(seconds=7000)
    assert shop.show(payment).fulfilled
    first.stop()
    shop.start(final_depth=0, clock=later)
    answer = shop.show(payment)
    claim = shop.claim(payment)
    if later < 7000:
        assert claim is not None
        assert claim.body is None
        assert answer.replayed
    else:  # forgotten at last, and of no use any more: the authorization is over
        assert answer.status in (200, 402, 403)
        assert not answer.fulfilled
    assert len(shop.runs()) == len(shop.transfers()) == 1


def test_C08_after_a_restart_it_is_the_same_answer(shop: Shop) -> None:
    first = shop.start()
    payment = shop.pay()
    served = shop.show(payment)
    first.stop()
    shop.start()
    again = shop.show(payment)
    assert (again.status, again.replayed, again.body) == (200, True, served.body)
    assert shop.show(payment, path="/other").status == 403
    assert len(shop.runs()) == len(shop.transfers()) == 1
    settled_down(shop)


def test_C08_after_a_kill_it_is_the_same_answer(shop: Shop) -> None:
    first = shop.start()
    payment = shop.pay()
    served = shop.show(payment)
    first.kill()
    shop.start()
    again = shop.show(payment)
    assert (again.status, again.replayed, again.body) == (200, True, served.body)
    settled_down(shop)


def test_C08_after_a_restart_with_another_recipient_what_was_paid_is_still_paid(shop: Shop) -> None:
    first = shop.start(fails=9, settle=0.2)
    served, owed, sent = shop.pay("/goods"), shop.pay("/fails"), shop.pay("/goods")
    assert shop.show(served).fulfilled
    assert shop.show(owed).kept_good
    shop.chain.set_automine(False)
    assert shop.show(sent).status == 504
    first.stop()
    shop.chain.mine()
    shop.chain.set_automine(True)
    shop.start(pay_to=shop.chain.accounts[5].address)
    assert shop.show(served).replayed
    assert shop.show(owed).fulfilled
    assert shop.show(sent).status in (409, 504)  # nobody here can look for it; never 402
    shop.wait_for(lambda: "ALERT" in shop.log)
    shop.servers[-1].stop()
    shop.start()
    assert shop.show_until_decided(sent).fulfilled
    assert len(shop.transfers()) == 3
    settled_down(shop)


def test_C11_challenges_leave_no_row_and_the_first_of_them_can_still_be_paid(shop: Shop) -> None:
    shop.start()
    payment = shop.pay()
    size = Path(shop.setup.ledger).stat().st_size
    with httpx.Client(base_url=shop.servers[0].url, trust_env=False) as anybody:
        for number in range(1000):
            assert anybody.get(f"/goods?n={number}").status_code == 402
    assert shop.claims() == []
    assert Path(shop.setup.ledger).stat().st_size == size
    assert shop.show(payment).fulfilled
    settled_down(shop)


def test_C11_payments_that_are_worth_nothing_leave_no_row(shop: Shop) -> None:
    shop.start()
    poor = shop.chain.accounts[0]  # has no token
    broke = shop.pay(payer=poor)
    assert shop.show(broke).status == 402
    cheap = shop.pay(value=1)
    assert shop.show(cheap).status == 402
    assert shop.claims() == []
    assert shop.transfers() == []
    check(shop)
