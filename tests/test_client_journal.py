"""The payer's journal: written before it is sent, found again after a crash, and a cap that holds over processes."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import os
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.clients import KEY, call, client_of, payer
from tests.support.paid_server import PaidServer, entry
from tests.support.paid_server import seller as seller
from tests.support.paid_server import server as server
from x402kit.client import BalanceCall, Limits, Payer, PayerError, TooDear, payment_of
from x402kit.client.journal import COOL, KEEP, SHOWN_LATE, Journal, Payment
from x402kit.errors import ConfigError
from x402kit.protocols import x402

NOW = 1_800_000_000
ROOT = Path(__file__).parent.parent


def draft(name: str = "a", *, at: int = NOW, micros: int = 10_000) -> Payment:
    return Payment(
        reference=name,
        fingerprint=b"request",
        method="GET",
        url="https://seller/",
        network="eip155:8453",
        asset="0xasset",
        pay_to="0xseller",
        payer="0xpayer",
        amount=micros,
        micros=micros,
        created_at=at,
        valid_before=at + 60,
    )


def sign() -> tuple[str, str]:
    return "PAYMENT-SIGNATURE", "signed"


class Call:
    """Stands for a live call: a payment is in use while it lives."""


def reserve(journal: Journal, name: str = "a", *, at: int = NOW, day: int | None = None) -> Call:
    call = Call()
    journal.reserve(draft(name, at=at), (None, day), sign, call)
    return call


def taken(journal: Journal, at: int) -> str:
    found = journal.take(b"request", "0xpayer", at, Call())
    return found.reference if found else ""


# Before it is sent


def test_M03_the_row_is_on_disk_before_the_payment_is_sent(tmp_path: Path) -> None:
    path = tmp_path / "payments.db"
    challenge = x402.encode_header({"x402Version": 2, "accepts": [entry()]})
    seen: list[Any] = []

    def answer(request: httpx.Request) -> httpx.Response:
        if "payment-signature" not in request.headers:
            return httpx.Response(402, headers={"payment-required": challenge})
        with contextlib.closing(sqlite3.connect(path)) as db:
            seen.extend(db.execute("SELECT value = ?, state FROM payments", (request.headers["payment-signature"],)))
        return httpx.Response(200)

    paying = payer(journal=path)
    with httpx.Client(transport=paying.transport(httpx.MockTransport(answer))) as client:
        client.get("http://127.0.0.1/a")
    assert seen == [(1, "signed")]


def test_M03_a_journal_that_can_not_be_written_signs_nothing(tmp_path: Path, seller: PaidServer) -> None:
    path = tmp_path / "payments.db"
    paying = payer(journal=path)
    with contextlib.closing(sqlite3.connect(path)) as db, db:
        db.execute("CREATE TRIGGER full BEFORE INSERT ON payments BEGIN SELECT RAISE(ABORT, 'disk full'); END")
    for kind in ("httpx", "httpx2 async"):
        with pytest.raises(PayerError, match="journal"):
            call(paying, kind, seller.url + "/v2/a")
    assert seller.paid == []
    assert str(paying.spent_today()) == "$0.000000"


def test_a_row_that_can_not_be_closed_costs_nobody_the_answer(
    tmp_path: Path, seller: PaidServer, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "payments.db"
    paying = payer(journal=path)
    with contextlib.closing(sqlite3.connect(path)) as db, db:
        db.execute("CREATE TRIGGER full BEFORE UPDATE ON payments BEGIN SELECT RAISE(ABORT, 'disk full'); END")
    assert call(paying, "httpx", seller.url + "/v2/a").content == b"goods hi"
    assert "could not be written down" in caplog.text


def test_the_file_is_for_its_owner_only_and_its_folder_is_made(tmp_path: Path) -> None:
    path = tmp_path / "new" / "payments.db"
    paying = payer(journal=path)
    paying.payments()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_home_folder_is_understood(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    Payer(KEY, journal="~/payments.db").close()
    assert (tmp_path / "payments.db").exists()


def test_a_file_that_is_no_journal_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.db"
    with contextlib.closing(sqlite3.connect(path)) as db, db:
        db.execute("CREATE TABLE mine (x)")
    before = path.read_bytes()
    (tmp_path / "text").write_text("not a database, but long enough to be read as one " * 20)
    for name in ("other.db", "text", "other.db/below"):
        with pytest.raises(ConfigError, match="journal"):
            Journal(tmp_path / name)
    assert path.read_bytes() == before
    gc.collect()  # a connection that was left open would say so, since Python 3.13


# After a crash

CRASHING = """
import os, sys
import httpx
from tests.support.clients import client_of, payer
url, path = sys.argv[1:]
with client_of(payer(journal=path), "httpx") as client:
    print("go", flush=True)
    client.post(url, content=b"hi")
"""


def test_a_journal_of_a_later_version_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "payments.db"
    Journal(path).close()
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA user_version = 2")
    with pytest.raises(ConfigError, match="this version"):
        Journal(path)


def test_M03_a_killed_processs_payment_is_shown_again_by_the_next_one(tmp_path: Path, seller: PaidServer) -> None:
    seller.script["/v2/a"] = ["wait"]
    path = tmp_path / "payments.db"
    arguments = [sys.executable, "-c", CRASHING, seller.url + "/v2/a", str(path)]
    with subprocess.Popen(arguments, cwd=ROOT, stdout=subprocess.PIPE) as process:
        assert seller.started.wait(30)
        paying = payer(journal=path)
        other = call_in_thread(paying, seller.url + "/v2/b")
        process.send_signal(signal.SIGKILL)
        process.wait(10)
    seller.released.set()
    assert other.status_code == 200
    info = payment_of(call(paying, "httpx", seller.url + "/v2/a"))
    assert info is not None
    assert info.replayed
    assert len({seen.payment for seen in seller.paid if seen.path == "/v2/a"}) == 1
    assert sorted(seller.settled.values()) == ["/v2/a", "/v2/b"]


def call_in_thread(paying: Payer, url: str) -> Any:
    answers: list[Any] = []
    thread = threading.Thread(target=lambda: answers.append(call(paying, "httpx", url)))
    thread.start()
    thread.join(30)
    return answers[0]


def test_M03_a_payment_that_another_live_process_uses_is_not_taken(tmp_path: Path, seller: PaidServer) -> None:
    seller.script["/v2/a"] = ["wait"]
    path = tmp_path / "payments.db"
    arguments = [sys.executable, "-c", CRASHING, seller.url + "/v2/a", str(path)]
    with subprocess.Popen(arguments, cwd=ROOT, stdout=subprocess.PIPE) as process:
        assert seller.started.wait(30)
        assert call(payer(journal=path), "httpx", seller.url + "/v2/a").status_code == 200
        seller.released.set()
        assert process.wait(30) == 0
    assert len(seller.settled) == 2


def test_a_lease_is_not_believed_for_ever(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "payments.db")
    reserve(journal)
    with contextlib.closing(sqlite3.connect(tmp_path / "payments.db")) as db, db:
        db.execute("UPDATE payments SET owner = ?", (f"{os.getppid()}-x",))
    assert taken(journal, NOW + 60) == ""
    assert taken(journal, NOW + 901) == "a"


def test_a_payment_of_a_call_that_is_no_more_is_free_at_once() -> None:
    journal = Journal()
    live = reserve(journal)
    assert taken(journal, NOW) == ""
    del live
    assert taken(journal, NOW) == "a"


def test_two_journals_of_one_process_respect_each_other(tmp_path: Path) -> None:
    first, second = Journal(tmp_path / "payments.db"), Journal(tmp_path / "payments.db")
    live = reserve(first)
    assert taken(second, NOW) == ""
    first.close()
    assert taken(second, NOW) == "a"
    del live


def test_a_forked_child_opens_the_file_anew(tmp_path: Path) -> None:
    code = (
        "import os, sys; from tests.test_client_journal import Journal, NOW, reserve\n"
        "journal = Journal(sys.argv[1]); live = reserve(journal, 'parent')\n"
        "child = os.fork()\n"
        "live = reserve(journal, 'child' if child == 0 else 'parent again')\n"
        "if child: sys.exit(os.waitpid(child, 0)[1])\n"
    )
    path = tmp_path / "payments.db"
    subprocess.run([sys.executable, "-c", code, str(path)], cwd=ROOT, check=True, timeout=60)
    assert {row.reference for row in Journal(path).payments()} == {"parent", "child", "parent again"}


def test_a_forked_childs_threads_open_the_file_once_and_none_uses_the_parents(tmp_path: Path) -> None:
    """A server that was loaded before it forked: its workers' threads begin all at once."""
    code = """
import os, sys, threading
from tests.test_client_journal import Journal, NOW, reserve
from x402kit.client import journal as module
journal = Journal(sys.argv[1]); live = reserve(journal, 'parent')
if child := os.fork():
    sys.exit(os.waitpid(child, 0)[1] >> 8)
parents, opened, used, connect = journal._db, [], [], module.connect

def slowly(path):
    threading.Event().wait(0.2)
    opened.append(connect(path))
    return opened[-1]

def use(number):
    begin.wait(10)
    with journal._locked() as db:
        used.append(db)
    used.append(reserve(journal, str(number)))

module.connect, begin = slowly, threading.Barrier(4)
threads = [threading.Thread(target=use, args=(number,)) for number in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
sys.stdout.flush()
os._exit(0 if len(opened) == 1 and len(used) == 8 and parents not in used else 1)
"""
    path = tmp_path / "payments.db"
    subprocess.run([sys.executable, "-c", code, str(path)], cwd=ROOT, check=True, timeout=60)
    assert len(Journal(path).payments()) == 5


# How long a payment is shown again


@pytest.mark.parametrize(
    ("state", "refused", "shown_until"),
    [
        ("signed", False, 60 + SHOWN_LATE),
        ("unknown", False, 60 + SHOWN_LATE),
        ("unknown", True, COOL - 1),
        ("refused", False, 60),
        ("refused", True, COOL - 1),
        ("used", True, COOL - 1),
        ("accepted", False, -1),
        ("given up", False, -1),
    ],
)
def test_M02_how_long_a_payment_is_shown_again(state: str, refused: bool, shown_until: int) -> None:
    for seconds in {0, max(shown_until, 0), shown_until + 1}:
        journal = Journal()
        reserve(journal)
        if state != "signed":
            journal.finish("a", state, NOW, refused=refused)
        assert taken(journal, NOW + seconds) == ("a" if seconds <= shown_until else ""), seconds


def test_M02_the_third_refusal_ends_it_once_it_can_not_land() -> None:
    journal = Journal()
    reserve(journal)
    for seconds in (10, 20, 70):
        assert taken(journal, NOW + seconds) == "a"
        journal.finish("a", "refused", NOW + seconds, refused=True)
    assert taken(journal, NOW + 71) == ""


@pytest.mark.parametrize("state", ["accepted", "given up"])
def test_M02_what_is_over_stays_so(tmp_path: Path, state: str) -> None:
    """Two calls may have shown one payment, as in two containers, which can't see each other's processes."""
    journal = Journal(tmp_path / "payments.db")
    reserve(journal)
    journal.finish("a", state, NOW)
    journal.finish("a", "unknown", NOW, reason="its answer was lost")
    assert taken(journal, NOW + 1) == ""
    journal.finish("a", "accepted", NOW, transaction="0x1")
    assert [(row.state, row.transaction) for row in journal.payments()] == [("accepted", "0x1")]


@pytest.mark.parametrize("state", ["answered", "refused", "given up"])
def test_C06_a_call_from_the_balance_that_is_over_stays_so(state: str) -> None:
    journal, made = Journal(), BalanceCall("call-a", b"request", "GET", "https://seller/", "0xpayer", "key", NOW)
    journal.begin_call(made, Call())
    journal.end_call("call-a", state, NOW)
    journal.end_call("call-a", "unknown", NOW)
    assert not journal.has_open_call(b"request", "0xpayer", NOW + 1)


# Budgets


def test_M04_a_budget_comes_back_of_what_nobody_saw_when_it_can_not_land_any_more() -> None:
    journal = Journal()
    reserve(journal, day=10_000)
    journal.finish("a", "refused", NOW)
    with pytest.raises(TooDear):
        reserve(journal, "b", at=NOW + 60, day=10_000)
    reserve(journal, "b", at=NOW + 61, day=10_000)
    assert [row.state for row in journal.payments()] == ["released", "signed"]
    assert journal.spent("0xpayer", NOW) == (10_000, 10_000)


@pytest.mark.parametrize("sent", [0, 1])
def test_M04_a_budget_does_not_come_back_on_the_sellers_word(sent: int) -> None:
    """Who refused a payment may have settled it since; and whether it was shown again later does not matter."""
    journal = Journal()
    reserve(journal, day=10_000)
    journal.finish("a", "refused", NOW, refused=True)
    for _ in range(sent):
        assert taken(journal, NOW + 30) == "a"
        journal.finish("a", "refused", NOW + 30)
    with pytest.raises(TooDear):
        reserve(journal, "b", at=NOW + COOL + 30, day=10_000)
    reserve(journal, "b", at=NOW + COOL + 30)
    assert [row.state for row in journal.payments()] == ["released", "signed"]
    assert journal.spent("0xpayer", NOW) == (20_000, 20_000)


@pytest.mark.parametrize("state", ["unknown", "used", "accepted", "given up"])
def test_M04_any_other_payments_budget_stays_spent(state: str) -> None:
    journal = Journal()
    reserve(journal, day=10_000)
    journal.finish("a", state, NOW)
    with pytest.raises(TooDear):
        reserve(journal, "b", at=NOW + 3000, day=10_000)


def test_M04_wallets_have_budgets_of_their_own() -> None:
    journal = Journal()
    reserve(journal, day=10_000)
    other = dataclasses.replace(draft("b"), payer="0xother")
    journal.reserve(other, (None, 10_000), sign, Call())
    assert journal.spent("0xother", NOW) == (10_000, 10_000)


def test_M04_threads_together_never_exceed_a_cap(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "payments.db")
    kept: list[Call] = []
    refused: list[str] = []

    def spend(thread: int) -> None:
        for i in range(10):
            try:
                kept.append(reserve(journal, f"{thread} {i}", day=250_000))
            except TooDear:
                refused.append("")

    threads = [threading.Thread(target=spend, args=(i,)) for i in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(kept), len(refused)) == (25, 25)


SPENDING = """
import sys
from tests.test_client_journal import Journal, TooDear, reserve
journal, done = Journal(sys.argv[1]), 0
for i in range(20):
    try:
        live = reserve(journal, f"{sys.argv[2]} {i}", day=250_000)
        done += 1
    except TooDear:
        pass
print(done)
"""


def test_M04_processes_together_never_exceed_a_cap(tmp_path: Path) -> None:
    path = str(tmp_path / "payments.db")
    started = [
        subprocess.Popen([sys.executable, "-c", SPENDING, path, str(i)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
        for i in range(3)
    ]
    done = [int(process.communicate(timeout=60)[0]) for process in started]
    assert sum(done) == 25
    assert Journal(path).spent("0xpayer", NOW) == (250_000, 250_000)


def test_I12_old_rows_are_forgotten_and_signatures_of_closed_ones_at_once(tmp_path: Path) -> None:
    for journal in (Journal(), Journal(tmp_path / "payments.db")):
        reserve(journal)
        journal.finish("a", "accepted", NOW)
        assert journal.payments()[0].value == ""
        for i in range(256):
            reserve(journal, str(i), at=NOW + KEEP + 1)
        assert "a" not in {row.reference for row in journal.payments()}


def test_J01_closed_while_an_abandoned_thread_writes_it_takes_nothing_with_it(tmp_path: Path) -> None:
    """In a process of its own: what would go wrong is a crash."""
    script = """
import sys, threading
from tests.test_client_journal import draft, sign
from x402kit.client import PayerError
from x402kit.client.journal import Journal

def write(journal, started, number):
    try:
        for turn in range(1_000_000):
            journal.reserve(draft(f"{number}-{turn}"), (None, None), sign, journal)
            journal.payments()
            started.set()
    except PayerError:
        pass

for turn in range(30):
    journal, started = Journal(f"{sys.argv[1]}/{turn}"), threading.Event()
    threads = [threading.Thread(target=write, args=(journal, started, number)) for number in range(3)]
    for thread in threads:
        thread.start()
    started.wait(10)
    journal.close()
    for thread in threads:
        thread.join()
print("whole")
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout) == (0, "whole\n"), done.stderr


def test_J03_a_commit_that_fails_leaves_a_journal_that_works(tmp_path: Path) -> None:
    """As on a full disk, when there is room again."""
    path = tmp_path / "payments.db"
    journal = Journal(path)
    deny = [True]

    def allow(action: int, what: str | None, *_: object) -> int:
        is_commit = (action, what) == (sqlite3.SQLITE_TRANSACTION, "COMMIT")
        return sqlite3.SQLITE_DENY if is_commit and deny else sqlite3.SQLITE_OK

    journal._db.set_authorizer(allow)  # pyright: ignore[reportPrivateUsage]
    with pytest.raises(PayerError, match="journal"):
        reserve(journal, day=10_000)
    deny.clear()
    assert Journal(path).payments() == []  # nor does it hold up anybody else
    reserve(journal, "b", day=10_000)
    reserve(Journal(path), "c")
    assert [row.reference for row in journal.payments()] == ["b", "c"]


def test_M12_ctrl_c_while_it_waits_for_the_file_leaves_a_journal_that_works(tmp_path: Path) -> None:
    """In a process of its own, whose main thread is interrupted."""
    script = """
import os, signal, sqlite3, sys, threading
from tests.test_client_journal import Journal, reserve
journal, other = Journal(sys.argv[1]), sqlite3.connect(sys.argv[1], isolation_level=None, check_same_thread=False)
other.execute("BEGIN IMMEDIATE")

def interrupt():
    os.kill(os.getpid(), signal.SIGINT)
    threading.Event().wait(0.3)
    other.execute("ROLLBACK")

timer = threading.Timer(0.3, interrupt)
timer.start()
try:
    reserve(journal, "a")
except KeyboardInterrupt:
    print("interrupted")
timer.join()
reserve(journal, "b")
other.execute("BEGIN IMMEDIATE")
print([row.reference for row in journal.payments()])
"""
    path = tmp_path / "payments.db"
    done = subprocess.run(
        [sys.executable, "-c", script, str(path)], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout == "interrupted\n['b']\n", done.stderr


def test_a_closed_journal_signs_nothing(seller: PaidServer) -> None:
    paying = payer()
    paying.close()
    with client_of(paying, "httpx") as client, pytest.raises(PayerError, match="journal"):
        client.post(seller.url + "/v2/a", content=b"hi")
    assert seller.paid == []


def test_limits_are_shared_by_all_transports_of_a_payer(seller: PaidServer) -> None:
    paying = payer(limits=Limits(per_day="$0.02"))
    for kind in ("httpx", "httpx2 async"):
        assert call(paying, kind, f"{seller.url}/v2/{kind.replace(' ', '')}").status_code == 200
    with pytest.raises(TooDear):
        call(paying, "httpx2", seller.url + "/v2/c")
