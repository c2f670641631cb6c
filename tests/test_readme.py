"""README's server and client run as printed, against a real chain; and its words are true."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

from tests.support.serving import free_port
from x402kit.devnet import EvmDevnet

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()


def blocks() -> list[str]:
    """The whole programs; what is no program has no imports."""
    return re.findall(r"```python\n(import .*?)```", README, re.DOTALL)


def wait_for(port: int, server: subprocess.Popen[bytes]) -> None:
    while server.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.02)
    raise AssertionError("the server did not start")


def test_the_server_and_the_client_run_as_printed(chain: EvmDevnet, tmp_path: Path) -> None:
    for name, text in zip(("server.py", "client.py"), blocks(), strict=True):
        (tmp_path / name).write_text(text)
    seller, payer = chain.accounts[:2]
    port = free_port()
    env = dict(os.environ, X402KIT_EVM_RPC_URL=chain.rpc_url, X402KIT_EVM_PAY_TO=seller.address)
    env["X402KIT_ORIGIN"] = f"http://127.0.0.1:{port}"  # as printed it is uvicorn's own port, 8000
    before = chain.balance_of(seller.address)
    server = subprocess.Popen(
        [sys.executable, "-m", "uvicorn", "server:app", "--port", str(port), "--log-level", "warning"],
        cwd=tmp_path,
        env=env | {"X402KIT_EVM_KEY": seller.private_key},
    )
    try:
        wait_for(port, server)
        client = subprocess.run(
            [sys.executable, "client.py", f"http://127.0.0.1:{port}/weather"],
            cwd=tmp_path,
            env=env | {"X402KIT_EVM_KEY": payer.private_key},
            capture_output=True,
            text=True,
            check=True,
        )
    finally:
        server.terminate()
        server.wait(20)
    goods, payment, more_goods, call, balance = client.stdout.splitlines()
    assert goods == more_goods == "{'weather': 'sunny'}"
    assert "amount=10000" in payment
    assert "source='payment'" in payment
    assert "source='balance', reserved=10000, charged=10000, returned=0, balance=990000" in call
    assert "available=990000, held=0" in balance
    assert all("verified=True" in info for info in (payment, call))
    assert chain.balance_of(seller.address) - before == 1_010_000


def test_a_new_chains_ledger_is_told_of_beside_it() -> None:
    lines = README.partition("\nx402kit devnet")[2].splitlines()
    assert lines[1].startswith("rm -f payments.db*")


def test_the_examples_are_the_readmes() -> None:
    """But for their docstrings, so that neither can drift from the other."""
    for name, text in zip(("weather_server.py", "weather_client.py"), blocks(), strict=True):
        assert (ROOT / "examples" / name).read_text().partition('"""\n\n')[2] == text


def test_no_text_of_ours_installs_somebody_elses_package() -> None:
    texts = [path for pattern in ("*.md", "docs/*.md", "x402kit/**/*.py") for path in ROOT.glob(pattern)]
    wrong = re.compile(r"pip install ['\"]?x402kit(?!-asgi)")
    assert [path.name for path in texts if wrong.search(path.read_text())] == []


def test_every_page_that_the_readme_names_exists() -> None:
    assert [name for name in re.findall(r"\]\(([^)#]+)\)", README) if not (ROOT / name).exists()] == []
