"""The example's image jobs: paid for once, whatever dies, and shown to nobody before that."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sqlite3
import sys
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from pathlib import Path

import httpx
import pytest

from examples import jobs as module
from examples.jobs import Jobs
from tests.support.commands import environment, run
from tests.support.example import ROOT, seller_of
from tests.support.serving import free_port
from x402kit import Paywall, usd
from x402kit.asgi import paywall as paywall_module
from x402kit.client import Limits, Payer
from x402kit.devnet import EvmDevnet
from x402kit.devnet.process import Server
from x402kit.model import Account, Hold
from x402kit.networks import Base
from x402kit.networks.assets import DEFAULTS

OWNER = Account.of("eip155:8453", DEFAULTS["eip155:8453"].address, "0x70997970C51812dc3A010C7d01b50e0d17dc79C8")
FAR = 4_000_000_000
PRICE = usd("$0.02")
PROMPTS = ["a cat", "?!"]
BILL = {"reserved_usdc": "0.040000", "charged_usdc": "0.020000", "refunded_usdc": "0.020000"}


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_SECONDS", 0.05)
    monkeypatch.setattr(module, "_LOOK_SECONDS", 0.01)
    monkeypatch.setattr(paywall_module, "_JOB_WAIT_SECONDS", 0.05)


@pytest.fixture
async def paywall(tmp_path: Path) -> AsyncGenerator[Paywall]:
    """With its ledger open; the rail is never asked."""
    made = Paywall([Base(pay_to="0x" + "11" * 20, facilitator="https://facilitator.example")], tmp_path / "payments.db")
    await made.store.start()
    await made.store.deposit(OWNER, 1_000_000, "by hand")
    yield made
    await made.store.close()


@pytest.fixture
def opened() -> Iterator[Callable[[str], Jobs]]:
    """Opens what is closed after the test."""
    with contextlib.ExitStack() as stack:
        yield lambda ledger: stack.enter_context(contextlib.closing(Jobs(ledger)))


@pytest.fixture
def jobs(opened: Callable[[str], Jobs], tmp_path: Path) -> Jobs:
    return opened(str(tmp_path / "payments.db"))


async def deferred(paywall: Paywall, name: str = "job", deadline: int = FAR) -> str:
    hold = Hold(name, *OWNER, 40_000, holder="h", created_at=1, deadline=1)
    await paywall.store.reserve(hold)
    assert await paywall.store.defer_hold(name, "h", deadline)
    return name


async def available(paywall: Paywall) -> int:
    balance = await paywall.store.balance(OWNER)
    assert balance.held == 0
    return balance.available


@contextlib.asynccontextmanager
async def working(*all_jobs: Jobs, paywall: Paywall) -> AsyncGenerator[None]:
    workers = [asyncio.create_task(each.run(paywall)) for each in all_jobs]
    try:
        yield
    finally:
        for worker in workers:
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)


async def ended(jobs: Jobs, job: str) -> dict[str, object]:
    for _ in range(500):
        told = jobs.look(job)
        if told is not None and told["status"] != "queued":
            return told
        await asyncio.sleep(0.01)
    raise AssertionError("the job did not end")


async def test_a_job_is_charged_for_what_was_drawn_by_whoever_is_first(
    paywall: Paywall, jobs: Jobs, opened: Callable[[str], Jobs], tmp_path: Path
) -> None:
    hold = await deferred(paywall)
    job = jobs.start(hold, PROMPTS, PRICE)["request_id"]
    assert jobs.start(hold, PROMPTS, PRICE)["request_id"] == job
    others = [opened(str(tmp_path / "payments.db")) for _ in range(3)]
    async with working(jobs, *others, paywall=paywall):
        told = await ended(jobs, job)
    assert (told["status"], told["billing"]) == ("succeeded", BILL)
    assert await available(paywall) == 980_000
    assert await paywall.store.verify() == []


async def test_killed_after_the_charge_it_is_ended_with_the_same_bill(paywall: Paywall, jobs: Jobs) -> None:
    job = jobs.start(await deferred(paywall), PROMPTS, PRICE)["request_id"]
    await paywall.finish("job", PRICE)
    async with working(jobs, paywall=paywall):
        told = await ended(jobs, job)
    assert (told["status"], told["billing"]) == ("succeeded", BILL)
    assert await available(paywall) == 980_000


async def test_a_price_that_changed_meanwhile_is_not_asked_for(paywall: Paywall, jobs: Jobs) -> None:
    job = jobs.start(await deferred(paywall), ["a cat", "a dog"], usd("$0.005"))["request_id"]
    async with working(jobs, paywall=paywall):
        await ended(jobs, job)
    assert await available(paywall) == 990_000


async def test_what_was_given_back_in_the_meantime_is_not_shown(paywall: Paywall, jobs: Jobs) -> None:
    job = jobs.start(await deferred(paywall, deadline=2), PROMPTS, PRICE)["request_id"]
    assert [hold.id for hold in await paywall.store.expire(int(time.time()))] == ["job"]
    async with working(jobs, paywall=paywall):
        told = await ended(jobs, job)
    assert (told["status"], told["results"]) == ("expired", [])
    assert await available(paywall) == 1_000_000


async def test_a_job_whose_answer_never_went_out_is_forgotten(
    paywall: Paywall, jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = jobs.start("nobody's", PROMPTS, PRICE)["request_id"]
    other = jobs.start(await deferred(paywall), PROMPTS, PRICE)["request_id"]
    async with working(jobs, paywall=paywall):
        await ended(jobs, other)
        told = jobs.look(job)
        assert told is not None
        assert told["status"] == "queued"
        monkeypatch.setattr(module, "_UNPAID_SECONDS", 0)
        for _ in range(500):
            if jobs.look(job) is None:
                break
            await asyncio.sleep(0.01)
    assert jobs.look(job) is None


async def test_a_ledger_out_of_reach_makes_a_job_wait(
    paywall: Paywall, jobs: Jobs, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    job = jobs.start(await deferred(paywall), PROMPTS, PRICE)["request_id"]
    other = sqlite3.connect(tmp_path / "payments.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")  # as a backup that takes too long
    async with working(jobs, paywall=paywall):
        end = time.monotonic() + 15
        while not caplog.records:
            assert time.monotonic() < end
            await asyncio.sleep(0.05)
        assert "could not be ended yet" in caplog.text
        other.execute("ROLLBACK")
        other.close()
        told = await ended(jobs, job)
    assert told["billing"] == BILL


async def test_a_file_is_closed_after_what_is_being_written(
    paywall: Paywall, jobs: Jobs, opened: Callable[[str], Jobs], tmp_path: Path
) -> None:
    """A connection that is closed under a thread takes the process with it."""
    job = jobs.start(await deferred(paywall), PROMPTS, PRICE)["request_id"]
    other = sqlite3.connect(tmp_path / "payments.jobs.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    async with working(jobs, paywall=paywall):
        async with asyncio.timeout(15):
            while (await paywall.store.balance(OWNER)).held or not jobs.busy.locked():  # noqa: ASYNC110  # neither tells
                await asyncio.sleep(0.01)
    closing = asyncio.create_task(asyncio.to_thread(jobs.close))
    await asyncio.wait((closing,), timeout=0.1)
    assert not closing.done()
    other.execute("ROLLBACK")
    other.close()
    await closing
    told = opened(str(tmp_path / "payments.db")).look(job)
    assert told is not None
    assert (told["status"], told["billing"]) == ("succeeded", BILL)


async def test_by_its_name_a_job_is_shown_without_its_id(paywall: Paywall, jobs: Jobs) -> None:
    job = jobs.start(await deferred(paywall), PROMPTS, PRICE)["request_id"]
    jobs.start(await deferred(paywall, "other"), ["a dog"], PRICE)
    name = module.name_of(job)
    assert (len(name), job.startswith(f"gen_{name}"), len(job)) == (12, True, 36)
    assert jobs.named(name) == {"status": "queued", "poll_after_seconds": 0.05}
    async with working(jobs, paywall=paywall):
        told = await ended(jobs, job)
    assert jobs.named(name) == {key: value for key, value in told.items() if key != "request_id"}
    for other in ("", name[:11], name + job[16], job[4:], "~" * 12, "?" * 12):
        assert jobs.named(other) is None


def test_a_ledger_in_a_database_does_not_tell_its_password(
    opened: Callable[[str], Jobs], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    jobs = opened("postgresql://me:hunter2@127.0.0.1/payments")
    job = jobs.start("hold", PROMPTS, PRICE)["request_id"]
    assert opened("postgresql://me:hunter2@127.0.0.1/payments").look(job) is not None
    (place,) = (path.name for path in tmp_path.iterdir())
    assert "hunter2" not in place
    assert opened(":memory:").look(job) is None


def test_killed_with_a_job_under_way(tmp_path: Path) -> None:
    with EvmDevnet() as chain:
        port = free_port()
        url = f"http://127.0.0.1:{port}"
        env = environment({**seller_of(chain, tmp_path / "payments.db"), "X402KIT_ORIGIN": url})
        app = ("examples.inference:app", "--app-dir", str(ROOT), "--port", str(port))
        command = (sys.executable, "-m", "uvicorn", *app)
        payer = Payer(chain.accounts[1].private_key, limits=Limits(per_call="$0.10"), allow_insecure=True)
        server = Server(command, ready="Uvicorn running on", env=env)
        with httpx.Client(base_url=url, transport=payer.transport()) as client:
            body = {"requests": [{"prompt": prompt} for prompt in PROMPTS]}
            answer = client.post("/v1/generation-requests", json=body)
        server.stop()  # SIGKILL
        assert answer.status_code == 202
        payer.close()
        server = Server(command, ready="Uvicorn running on", env=env)
        try:
            end = time.monotonic() + 15
            while (told := httpx.get(url + answer.headers["location"]).json())["status"] == "queued":
                assert time.monotonic() < end
                time.sleep(0.1)
            by_link = httpx.get(answer.json()["status_url"]).json()
        finally:
            server.terminate(10)
            server.stop()
    assert (told["status"], told["billing"]) == (by_link["status"], by_link["billing"]) == ("succeeded", BILL)
    (sums,) = json.loads(run("ledger", "totals", str(tmp_path / "payments.db")).out)["assets"].values()
    assert (sums["external"], sums["revenue"], sums["available"], sums["held"]) == (-40_000, 20_000, 20_000, 0)
    assert run("ledger", "verify", str(tmp_path / "payments.db")).status == 0
