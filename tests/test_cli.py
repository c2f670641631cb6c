"""`x402kit devnet` and `x402kit pay` as processes of their own: what they print, and each exit status."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import socket
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from tests.support.clients import ADDRESS, KEY
from tests.support.commands import Result, on_terminal, run, started, stopped_on_terminal
from tests.support.paid_server import PAY_TO, PaidServer, entry
from tests.support.paid_server import seller as seller
from tests.support.paid_server import server as server
from x402kit.cli import devnet as devnet_command
from x402kit.cli import main
from x402kit.cli.keys import journal_path
from x402kit.devnet import DevnetError, EvmDevnet, ToolMissing, packages
from x402kit.devnet.rpc import JsonRpc
from x402kit.networks.assets import DEFAULTS

USDC = DEFAULTS["eip155:8453"]
SOLANA_USDC = "EPjFWdd5AufqSSqeM2qN1xzybapC8G4wEGGkZwyTDt1v"


def chain_id(rpc_url: str) -> str | None:
    """What the node at a URL says it is; None when nobody answers."""
    node = JsonRpc(rpc_url.removeprefix("http://"))
    try:
        return str(node("eth_chainId"))
    except DevnetError:
        return None
    finally:
        node.close()


# devnet


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_devnet_prints_one_line_and_runs_until_stopped(stop: signal.Signals) -> None:
    with started("devnet") as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        evm, svm = json.loads(line)["evm"], json.loads(line)["svm"]
        assert set(svm) == {"rpc_url", "network", "usdc", "accounts"}
        assert (svm["network"], svm["usdc"]) == ("solana:5eykt4UsFv8P8NJdTREpY1vzqKqZKvdp", SOLANA_USDC)
        assert set(svm["accounts"][1]) == {"address", "secret_key"}
        with contextlib.closing(JsonRpc(svm["rpc_url"].removeprefix("http://"))) as solana:
            assert solana("getHealth") == "ok"
        assert set(evm) == {"rpc_url", "chain_id", "usdc", "accounts"}
        assert (evm["chain_id"], evm["usdc"]) == (8453, USDC.address)
        assert evm["accounts"][1]["address"] == ADDRESS
        assert chain_id(evm["rpc_url"]) == hex(8453)
        process.send_signal(stop)
        rest, complaints = process.communicate(timeout=10)
    assert (process.returncode, rest, complaints) == (0, "", "")
    assert chain_id(evm["rpc_url"]) is None


def test_devnet_on_a_terminal_is_for_people() -> None:
    shown = stopped_on_terminal("devnet", after="Ctrl-C")
    text = shown.out
    assert shown.status == 0
    assert f"1 payer      {ADDRESS}  1000.000000 USDC" in text
    assert f"export X402KIT_EVM_KEY={KEY}" in text
    assert "export X402KIT_SVM_PAY_TO=" in text
    assert "rm -f payments.db*" in text
    sells = text.partition("For a seller:")[2].partition("For a payer")[0]
    assert "X402KIT_ENV=devnet X402KIT_ORIGIN=http://127.0.0.1:8000" in sells  # uvicorn's own place
    assert "http://127.0.0.1:" in text
    assert "{" not in text


def test_devnet_json_on_a_terminal() -> None:
    shown = stopped_on_terminal("devnet", "--json", after="\n", stop=signal.SIGTERM)
    assert shown.status == 0
    assert json.loads(shown.out)["evm"]["chain_id"] == 8453


@pytest.mark.parametrize(("at", "name"), [(0, "EVM"), (1, "Solana")])
def test_devnet_says_when_its_chain_ended(at: int, name: str) -> None:
    with started("devnet") as process:
        assert process.stdout is not None
        process.stdout.readline()
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        assert len(children) == 2
        os.kill(int(children[at]), signal.SIGKILL)
        _, complaints = process.communicate(timeout=10)
    assert (process.returncode, complaints) == (1, f"x402kit: the {name} chain ended\n")


def test_devnet_without_a_solana_runtime_has_the_other_chain(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def missing() -> Path:
        raise ToolMissing("not built for this machine")

    monkeypatch.setattr(packages, "surfpool", missing)
    with contextlib.ExitStack() as stack:
        assert devnet_command._solana(stack) is None  # pyright: ignore[reportPrivateUsage]  # needs no second process
    assert capsys.readouterr().err == "x402kit: no Solana: not built for this machine\n"


def test_devnet_into_a_pipe_that_nobody_reads_leaves_nothing() -> None:
    process = subprocess.run(
        ("sh", "-c", f"{sys.executable} -m x402kit devnet | true"), capture_output=True, text=True, timeout=30
    )
    assert process.stderr == ""


# pay


class Paying:
    """`x402kit pay` with a journal of its own; called, it runs in this process, for a process each takes its time."""

    def __init__(self, url: str, env: dict[str, str], patch: pytest.MonkeyPatch, output: pytest.CaptureFixture[str]):
        self.url, self.env, self._patch, self._output = url, env, patch, output

    def arguments(self, path: str, *more: str) -> tuple[str, ...]:
        return ("pay", "--allow-insecure", self.url + path, *more)

    def __call__(self, path: str, *more: str, stdin: bytes = b"") -> Result:
        with self._patch.context() as patched:
            patched.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
            for name, value in self.env.items():
                patched.setenv(name, value)
            try:
                status = main(self.arguments(path, *more))
            except SystemExit as ended:  # by argparse
                status = int(ended.code or 0)
        out, err = self._output.readouterr()
        return Result(status, out, err)


@pytest.fixture
def pay(
    seller: PaidServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Paying:
    env = {"X402KIT_EVM_KEY": KEY, "XDG_STATE_HOME": str(tmp_path)}
    return Paying(seller.url, env, monkeypatch, capfd)


def said(result: Result) -> dict[str, Any]:
    """The one line of JSON on standard error."""
    (line,) = result.err.splitlines()
    made: dict[str, Any] = json.loads(line)
    return made


def test_pay_0_body_to_stdout_and_receipt_to_stderr(seller: PaidServer, pay: Paying) -> None:
    done = run(*pay.arguments("/v2/a", "-X", "POST", "-d", "hi"), env=pay.env)
    assert (done.status, done.out) == (0, "goods hi")
    receipt = said(done)
    assert receipt["amount"] == "10000"
    assert receipt["price"] == "0.010000 USDC"
    assert receipt["network"] == "eip155:8453"
    assert (receipt["payer"], receipt["pay_to"]) == (ADDRESS, PAY_TO)
    assert (receipt["status"], receipt["verified"], receipt["replayed"]) == (200, True, False)
    assert receipt["transaction"].startswith("0x")
    assert len(seller.settled) == 1


def test_pay_0_on_a_terminal_in_words(seller: PaidServer, pay: Paying) -> None:
    shown = on_terminal(*pay.arguments("/v2/a", "-d", "hi"), env=pay.env)
    assert shown.status == 0
    assert "goods hi\n" in shown.out
    assert f"paid 0.010000 USDC on base (eip155:8453) to {PAY_TO}" in shown.out
    assert f"from {ADDRESS}" in shown.out
    assert "transaction 0x" in shown.out


def test_pay_0_for_what_is_free_and_says_nothing(pay: Paying) -> None:
    done = pay("/free/a")
    assert (done.status, done.out, done.err) == (0, "free", "")


def test_pay_sends_what_curl_would(seller: PaidServer, pay: Paying, tmp_path: Path) -> None:
    (tmp_path / "body").write_bytes(b"from a file")
    for arguments, body, kind in (
        (("-d", "a=b"), b"a=b", "application/x-www-form-urlencoded"),
        (("-d", f"@{tmp_path / 'body'}"), b"from a file", "application/x-www-form-urlencoded"),
        (("-d", "@-"), b"from a pipe", "application/x-www-form-urlencoded"),
        (("-j", '{"n":1}'), b'{"n":1}', "application/json"),
        (("-d", "x", "-H", "Content-Type: text/plain"), b"x", "text/plain"),
    ):
        assert pay("/v2/sent", *arguments, stdin=b"from a pipe").status == 0
        last = seller.paid[-1]
        assert (last.method, last.body, last.headers["content-type"]) == ("POST", body, kind)
    assert pay("/v2/sent", "-X", "put", "-d", "", "-H", "X-A:  b ").status == 0
    assert (seller.paid[-1].method, seller.paid[-1].headers["x-a"]) == ("PUT", "b")


def test_pay_writes_head_and_file(pay: Paying, tmp_path: Path) -> None:
    done = pay("/v2/a", "-i")
    head, _, body = done.out.partition("\r\n\r\n")
    assert head.startswith("HTTP/1.1 200 OK\r\n")
    assert "payment-response: " in head
    assert body == "goods "
    done = pay("/v2/a", "-o", str(tmp_path / "out"))
    assert (done.status, done.out, (tmp_path / "out").read_bytes()) == (0, "", b"goods ")


def test_pay_follows_a_redirect_when_asked(seller: PaidServer, pay: Paying) -> None:
    assert pay("/redirect/v2/a").out == ""
    assert seller.settled == {}
    assert pay("/redirect/v2/a", "-L").out == "goods "
    assert len(seller.settled) == 1


def test_pay_takes_its_key_from_a_file(seller: PaidServer, pay: Paying, tmp_path: Path) -> None:
    (tmp_path / "key").write_text(KEY + "\n")
    pay.env["X402KIT_EVM_KEY"] = ""
    assert pay("/v2/a", "--key-file", str(tmp_path / "key")).status == 0
    assert pay("/v2/a", "--key-file", str(tmp_path / "none")).status == 2


def test_pay_1_errors(seller: PaidServer, pay: Paying) -> None:
    seller.script["/v2/a"] = ["404"]
    done = pay("/v2/a")
    assert (done.status, done.out) == (1, "404")
    assert "the payment was not taken" in done.err
    pay.url = "http://127.0.0.1:9"
    refused = pay("/")
    assert (refused.status, said(refused)["error"]) == (1, "error")
    assert "http://127.0.0.1:9/" in said(refused)["message"]
    pay.url = "nonsense"
    assert pay("/").status == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ("--max-amount", "5"),
        ("--max-amount", "1e-2"),
        ("--max-amount", "five"),
        ("-d", "@/nowhere"),
        ("-H", "no colon"),
        ("-d", "a", "-j", "b"),
    ],
)
def test_pay_2_wrong_usage(seller: PaidServer, pay: Paying, arguments: tuple[str, ...]) -> None:
    done = pay("/v2/a", *arguments)
    assert (done.status, done.out) == (2, "")
    assert seller.seen == []


@pytest.mark.parametrize("key", ["", "0x12", KEY[:-1] + "g"])
def test_pay_2_without_a_wallet(seller: PaidServer, pay: Paying, key: str) -> None:
    pay.env["X402KIT_EVM_KEY"] = key
    done = pay("/v2/a")
    assert done.status == 2
    assert not key or key not in done.err
    assert seller.seen == []


def test_pay_3_refused_by_the_limits(seller: PaidServer, pay: Paying) -> None:
    done = run("pay", seller.url + "/v2/a", env=pay.env)
    assert (done.status, said(done)["error"]) == (3, "refused")
    assert "plain http" in said(done)["message"]
    assert "--allow-insecure" in said(done)["message"]
    assert seller.paid == []


def test_pay_3_when_no_offer_can_be_paid(seller: PaidServer, pay: Paying) -> None:
    seller.offers["/v2/odd"] = [entry(asset=PAY_TO)]
    done = pay("/v2/odd")
    assert (done.status, said(done)["error"]) == (3, "not_payable")
    assert pay("/plain402/a").status == 3
    assert seller.paid == []


def test_pay_3_when_the_server_does_not_accept_it(seller: PaidServer, pay: Paying) -> None:
    seller.script["/v2/no"] = ["refuse"]
    done = pay("/v2/no")
    assert (done.status, said(done)["error"]) == (3, "not_accepted")
    assert "quote_expired" in said(done)["message"]
    seller.script["/v2/spent"] = ["403"]
    done = pay("/v2/spent")
    assert (done.status, done.out) == (3, "403")


def test_M01_pay_4_too_dear(seller: PaidServer, pay: Paying) -> None:
    done = pay("/v2/a", "--max-amount", "0.009999")
    assert (done.status, said(done)["error"], seller.paid) == (4, "too_dear", [])
    assert "above --max-amount" in said(done)["message"]
    assert pay("/v2/a", "--max-amount", "$0.01").status == 0
    seller.offers["/v2/dear"] = [entry(amount="50001")]
    assert pay("/v2/dear").status == 4


def test_M04_pay_4_for_the_day(seller: PaidServer, pay: Paying) -> None:
    statuses = [pay(f"/v2/{n}", "--max-per-day", "0.02").status for n in range(3)]
    assert (statuses, len(seller.settled)) == ([0, 0, 4], 2)


def test_M03_pay_5_and_the_same_command_shows_the_same_payment(seller: PaidServer, pay: Paying) -> None:
    seller.script["/v2/lost"] = ["drop", "drop", "drop"]
    done = pay("/v2/lost")
    assert (done.status, done.out, said(done)["error"]) == (5, "", "outcome_unknown")
    assert said(done)["reference"].startswith("0x")
    again = pay("/v2/lost")
    assert (again.status, again.out) == (0, "goods ")
    assert said(again)["replayed"] is True
    assert len(seller.settled) == 1
    assert len({seen.payment for seen in seller.paid}) == 1


@pytest.mark.parametrize("actions", [["502"] * 3, ["drop", "502", "drop"], ["drop", "lie"], ["break"], ["422"]])
def test_pay_5_whatever_leaves_the_outcome_open(seller: PaidServer, pay: Paying, actions: list[str]) -> None:
    seller.script["/v2/open"] = actions
    done = pay("/v2/open")
    assert (done.status, said(done)["error"]) == (5, "outcome_unknown")
    assert "the same command shows the same payment again" in said(done)["message"]
    assert pay("/v2/open").status == 0
    assert len(seller.settled) == 1
    assert len({seen.payment for seen in seller.paid}) == 1


@pytest.mark.parametrize(
    ("actions", "known"),
    [
        (["unsent"] * 3, "the seller says that nothing was sent"),
        (["proxy"] * 3, "what became of the payment is not known"),
        (["502", "unsent", "unsent"], "what became of the payment is not known"),
        (["drop", "unsent", "unsent"], "what became of the payment is not known"),
    ],
)
def test_M02_pay_5_says_that_nothing_was_sent_where_every_answer_was_the_sellers_own(
    seller: PaidServer, pay: Paying, actions: list[str], known: str
) -> None:
    seller.script["/v2/down"] = actions
    done = pay("/v2/down")
    assert (done.status, said(done)["error"]) == (5, "outcome_unknown")
    assert said(done)["message"] == f"status 503, and {known}; the same command shows the same payment again"
    assert pay("/v2/down").status == 0  # it was kept, and is good
    assert len(seller.settled) == 1
    assert len({seen.payment for seen in seller.paid}) == 1


def test_M12_pay_5_when_interrupted_while_it_pays(seller: PaidServer, pay: Paying) -> None:
    seller.script["/v2/slow"] = ["wait"]
    with started(*pay.arguments("/v2/slow"), env=pay.env) as process:
        assert seller.started.wait(20)
        process.send_signal(signal.SIGINT)
        out, complaints = process.communicate(timeout=20)
    assert (process.returncode, out) == (5, "")
    assert json.loads(complaints)["error"] == "outcome_unknown"
    seller.released.set()
    assert pay("/v2/slow").status == 0
    assert len(seller.settled) == 1


def test_pay_on_a_terminal_says_what_went_wrong(seller: PaidServer, pay: Paying) -> None:
    seller.script["/v2/forged"] = ["forged"]
    assert "the receipt is doubtful" in on_terminal(*pay.arguments("/v2/forged"), env=pay.env).out
    shown = on_terminal(*pay.arguments("/v2/a", "--max-amount", "0.001"), env=pay.env)
    assert shown.status == 4
    assert "x402kit:" in shown.out
    assert "{" not in shown.out


def test_J02_the_journal_stands_in_the_users_state(
    pay: Paying, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert pay("/v2/a").status == 0
    journal = tmp_path / "x402kit" / "journal.db"
    assert journal.stat().st_mode & 0o777 == 0o600
    assert pay("/v2/b", "--journal", str(tmp_path / "other.db")).status == 0
    assert (tmp_path / "other.db").exists()
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    monkeypatch.setenv("HOME", "/home/somebody")
    assert journal_path(None) == Path("/home/somebody/.local/state/x402kit/journal.db")


# all commands


def test_help_names_every_command_and_every_status(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, words in (
        (["--help"], ("devnet", "demo", "inspect", "pay")),
        (["pay", "--help"], tuple(f"  {status}  " for status in range(6))),
        (["devnet", "--help"], ("rpc_url",)),
        (["inspect", "--help"], ("Exit status",)),
        (["demo", "--help"], ("Status 0",)),
    ):
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        assert ended.value.code == 0
        text = capsys.readouterr().out
        assert all(word in text for word in words)


def test_without_a_command_the_usage_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([])
    assert ended.value.code == 2
    assert "usage: x402kit" in capsys.readouterr().err


def test_the_version_is_the_distributions() -> None:
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    assert run("--version") == Result(0, f"x402kit {project['version']}\n")


def test_an_interrupt_is_no_traceback() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(20)
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/"
        with started("inspect", "--allow-insecure", url) as process:
            connection, _ = listener.accept()
            process.send_signal(signal.SIGINT)
            out, complaints = process.communicate(timeout=20)
            connection.close()
    assert (process.returncode, out, complaints) == (130, "", "")


def test_a_chain_that_can_not_start_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("X402KIT_CACHE", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    assert main(["devnet"]) == 1
    assert capsys.readouterr().err.startswith("x402kit: the local chain needs npm")


def test_the_chain_is_running_until_it_is_stopped() -> None:
    with EvmDevnet() as chain:
        assert chain.running
    assert not chain.running
