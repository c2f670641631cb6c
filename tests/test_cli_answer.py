"""`x402kit pay`: where the answer goes, and that a place which is not there costs neither the money nor the receipt."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.clients import KEY
from tests.support.commands import COMMAND, Result, environment, run
from tests.support.paid_server import PaidServer
from tests.support.paid_server import seller as seller
from tests.support.paid_server import server as server

Shell = Callable[..., Result]


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    return {"X402KIT_EVM_KEY": KEY, "XDG_STATE_HOME": str(tmp_path / "state")}


@pytest.fixture
def shell(seller: PaidServer, env: dict[str, str], tmp_path: Path) -> Shell:
    """``x402kit pay`` of a megabyte, in a line of bash where it stands as ``{pay}``; the status is its own."""
    (tmp_path / "body").write_bytes(b"x" * 1_000_000)

    def call(line: str, *more: str) -> Result:
        words = (*COMMAND, "pay", "--allow-insecure", seller.url + "/v2/a", "-d", f"@{tmp_path / 'body'}", *more)
        script = line.format(pay=shlex.join(words)) + "; exit ${PIPESTATUS[0]}"
        done = subprocess.run(("bash", "-c", script), env=environment(env), capture_output=True, text=True, timeout=60)
        return Result(done.returncode, done.stdout, done.stderr)

    return call


def lines(done: Result) -> list[dict[str, Any]]:
    return [json.loads(line) for line in done.err.splitlines()]


def pay(seller: PaidServer, env: dict[str, str], *more: str) -> Result:
    return run("pay", "--allow-insecure", seller.url + "/v2/a", *more, env=env)


def test_2_and_nothing_is_signed_where_the_file_can_not_be_written(
    seller: PaidServer, env: dict[str, str], tmp_path: Path
) -> None:
    for place in ("nowhere/x", "."):
        done = pay(seller, env, "-o", str(tmp_path / place))
        assert (done.status, done.out) == (2, "")
        assert "the answer can't be written to" in done.err
    assert seller.seen == []


def test_a_file_stays_as_it_is_until_there_is_an_answer(
    seller: PaidServer, env: dict[str, str], tmp_path: Path
) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    old.write_bytes(b"what was there before, and is longer")
    for path in (old, new):
        assert pay(seller, env, "-o", str(path), "--max-amount", "0.001").status == 4
    assert (old.read_bytes(), new.exists()) == (b"what was there before, and is longer", False)
    for path in (old, new):
        assert pay(seller, env, "-o", str(path)).status == 0
        assert path.read_bytes() == b"goods "
    assert pay(seller, env, "-o", os.devnull).status == 0


@pytest.mark.parametrize("arguments", [(), ("-i",)])
def test_who_stops_reading_gets_the_receipt(seller: PaidServer, shell: Shell, arguments: tuple[str, ...]) -> None:
    done = shell("{pay} | head -c 3", *arguments)
    (receipt,) = lines(done)
    assert (done.status, len(done.out), receipt["amount"], receipt["verified"]) == (0, 3, "10000", True)
    assert len(seller.settled) == 1
    alone = shell("{pay} 2>&1 | head -c 3", *arguments)
    assert (alone.status, len(alone.out), alone.err) == (0, 3, "")


@pytest.mark.parametrize("where", ["-o /dev/full", "> /dev/full"])
def test_1_and_the_receipt_where_the_answer_can_not_be_written(seller: PaidServer, shell: Shell, where: str) -> None:
    done = shell("{pay} " + where)
    receipt, fault = lines(done)
    assert (done.status, receipt["amount"], fault["error"]) == (1, "10000", "not_written")
    assert "No space left" in fault["message"]
    assert fault["reference"] == receipt["reference"]


def test_2_without_a_standard_output(seller: PaidServer, shell: Shell) -> None:
    done = shell("{pay} >&-")
    assert (done.status, done.err.count("\n"), seller.seen) == (2, 1, [])
