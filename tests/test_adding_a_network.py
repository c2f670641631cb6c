"""docs/adding-a-network.md says what is so: its files, its names, and that the flow knows no chain."""

from __future__ import annotations

import re
from pathlib import Path

import x402kit.networks
from x402kit.networks import port
from x402kit.networks.svm_chain import SvmRail

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "adding-a-network.md").read_text()


def test_every_file_that_it_names_exists() -> None:
    named = set(re.findall(r"`((?:x402kit|tests)/[\w/.]+|pyproject\.toml)`", PAGE))
    assert len(named) > 10
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []


def test_its_tables_have_the_port_and_nothing_else() -> None:
    rows = re.findall(r"^\| (`[^|]+) \|", PAGE, re.MULTILINE)
    named = [name for row in rows for name in re.findall(r"`(\w+)`", row)]
    members = [name for name in vars(port.Rail) if not name.startswith("_")]
    assert sorted(named) == sorted(members)
    assert all(hasattr(SvmRail, name) or name in ("network", "asset", "pay_to", "confirmations") for name in members)


def test_its_code_is_the_codes() -> None:
    sources = [ROOT / "x402kit" / "networks" / "__init__.py", ROOT / "tests" / "test_svm_gate.py"]
    blocks = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert len(blocks) == len(sources)
    for block, source in zip(blocks, sources, strict=True):
        assert block in source.read_text()
    for name in ("PayingRail", "ScanningRail", "HintingRail", "ChargingRail"):
        assert hasattr(port, name)
        assert f"`{name}`" in PAGE


def test_every_name_of_the_registry_can_be_loaded() -> None:
    assert all(getattr(x402kit.networks, name) is not None for name in x402kit.networks.__all__)


def test_the_flow_and_the_ledger_know_nothing_of_solana() -> None:
    """But how its wallets sign in, which is the proofs' own business, and how an owner's address is compared."""
    files = [
        path for room in ("asgi", "paywall", "ledger", "pricing") for path in (ROOT / "x402kit" / room).glob("*.py")
    ]
    assert len(files) > 40
    knowing = [path.name for path in files if re.search(r"svm|solana|solders", path.read_text(), re.IGNORECASE)]
    assert knowing == ["proofs.py"]
