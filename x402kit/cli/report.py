"""What ``x402kit inspect`` says of a value: in words, what is wrong with it, and what is worth knowing."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

from ..model import Json
from ..money import Asset, format_units
from ..networks import evm
from ..networks.assets import TESTNETS, find_asset
from ..networks.lightning_port import BITCOIN, REGTEST, SIGNET, TESTNET, is_lightning
from ..protocols.x402 import v1_network

__all__ = ["Finding", "Report", "amount_text", "asset_text", "network_text", "number_text"]

_LIGHTNING: Final = {
    BITCOIN: "lightning",
    TESTNET: "lightning testnet",
    SIGNET: "lightning signet",
    REGTEST: "lightning regtest",
}


@dataclass(frozen=True, slots=True)
class Finding:
    """``code`` for programs, ``detail`` for people."""

    code: str
    detail: str


@dataclass(slots=True)
class Report:
    """``decoded`` is the value as it came. Problems make the exit status 1, notes do not."""

    kind: str = "unknown"
    decoded: Any = None
    lines: list[str] = field(default_factory=list[str])
    problems: list[Finding] = field(default_factory=list[Finding])
    notes: list[Finding] = field(default_factory=list[Finding])
    extra: Json = field(default_factory=dict[str, Any])

    @property
    def ok(self) -> bool:
        return not self.problems

    def say(self, line: str) -> None:
        self.lines.append(line)

    def problem(self, code: str, detail: str) -> None:
        self.problems.append(Finding(code, detail))

    def note(self, code: str, detail: str) -> None:
        self.notes.append(Finding(code, detail))

    def json(self) -> Json:
        found = {"problems": self.problems, "notes": self.notes}
        lists = {name: [{"code": f.code, "detail": f.detail} for f in findings] for name, findings in found.items()}
        return {"kind": self.kind, "ok": self.ok, **lists, **self.extra, "decoded": self.decoded}

    # What several kinds of value have

    def address(self, what: str, address: str) -> None:
        """An EVM address: whether its checksum (EIP-55) holds."""
        digits = address[2:]
        if len(address) != 42 or not address.startswith("0x"):
            self.problem("address_invalid", f"{what} {address!r} is not an address")
        elif digits in (digits.lower(), digits.upper()):
            self.note("checksum_missing", f"{what} {address} has no checksum: a wrong digit would not be noticed")
        elif evm.checksum(address) != address:
            self.problem("checksum_wrong", f"{what} {address} has a wrong checksum; a digit may be wrong")

    def domain(self, what: str, extra: Json, asset: Asset) -> None:
        """The EIP-712 domain that ``extra`` names, beside the one that the token has."""
        for key, known in (("name", asset.name), ("version", asset.version)):
            if extra.get(key) not in (None, known):
                detail = f"{what}: extra.{key} is {extra[key]!r}, the token's is {known!r}: signatures will be refused"
                self.problem("domain_mismatch", detail)

    def network(self, what: str, network: str) -> None:
        if network in TESTNETS:
            self.note("testnet", f"{what} is on {network_text(network)}: its money is worth nothing")


def network_text(network: str) -> str:
    """A CAIP-2 network with its short name, where it has one."""
    name = _LIGHTNING.get(network) or v1_network(network)
    return f"{name} ({network})" if name else network


def asset_text(network: str, address: str) -> str:
    """The unit that ``number_text`` writes amounts in; the address where we don't know the asset."""
    if is_lightning(network):
        return "sat"
    asset = find_asset(network, address)
    return asset.symbol if asset else address


def number_text(amount: int, network: str, address: str) -> str:
    """An amount in whole units, in satoshi on Lightning; in atomic units where we don't know the asset."""
    if is_lightning(network):
        return format_units(amount, 3)
    asset = find_asset(network, address)
    return format_units(amount, asset.decimals) if asset else str(amount)


def amount_text(amount: int, network: str, address: str) -> str:
    """An amount with its unit; in atomic units where we don't know the asset, for its decimals are only claimed."""
    known = is_lightning(network) or find_asset(network, address) is not None
    unit = asset_text(network, address)
    return f"{number_text(amount, network, address)} {unit if known else f'atomic units of the unknown asset {unit}'}"
