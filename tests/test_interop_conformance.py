"""The x402-conformance package's checks of our server's 402 answer and of our facilitator."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Generator

import pytest
from x402conf.harness import check_safety
from x402conf.pytest_plugin import X402

from tests.support.conformance import HttpFacilitator, made_vectors
from tests.support.seller import PAY_TO, selling
from tests.support.serving import serving
from x402kit.asgi.facilitator import facilitator_app
from x402kit.devnet import EvmDevnet
from x402kit.networks import Base

TOKEN = "a token that only tests know"


@pytest.fixture(scope="module")
def chain() -> Generator[EvmDevnet]:
    with EvmDevnet() as made:
        yield made


@pytest.fixture(scope="module")
def facilitator(chain: EvmDevnet, tmp_path_factory: pytest.TempPathFactory) -> Generator[str]:
    rail = Base(pay_to=PAY_TO, key=chain.accounts[0].private_key, rpc=chain.rpc_url)
    store = tmp_path_factory.mktemp("facilitator") / "settlements.db"
    with serving(facilitator_app(store, [rail], token=TOKEN, settle_seconds=0.3, reconcile_seconds=0.2)) as url:
        yield url


def test_the_402_answer_passes_P1_to_P7(chain: EvmDevnet, tmp_path_factory: pytest.TempPathFactory, x402: X402) -> None:
    rail = Base(pay_to=PAY_TO, key=chain.accounts[3].private_key, rpc=chain.rpc_url)
    with selling(chain, rail, tmp_path_factory.mktemp("seller")) as seller:
        report = x402.check_payment_required(seller.url + "/weather")
    x402.assert_passed(report)
    assert report["summary"]["checks"] == 7


def test_the_facilitators_supported_answer_passes_S0_to_S4(facilitator: str) -> None:
    command = [sys.executable, "-m", "x402conf", "live", facilitator, "--fail-on-error"]
    credentials = {
        "X402C_FACILITATOR_AUTHORIZATION": f"Bearer {TOKEN}",
        "X402C_FACILITATOR_AUTH_HOST": "127.0.0.1",
    }
    ended = subprocess.run(
        command, env={**os.environ, **credentials}, capture_output=True, text=True, timeout=60, check=False
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr


def test_the_facilitator_passes_the_safety_checks(chain: EvmDevnet, facilitator: str) -> None:
    adapter = HttpFacilitator(chain, facilitator, {"Authorization": f"Bearer {TOKEN}"})
    try:
        results = check_safety(adapter, made_vectors(chain, PAY_TO))
    finally:
        chain.set_automine(True)
    assert [(result["check"], result["detail"]) for result in results if not result["pass"]] == []
    assert len(results) == 15
