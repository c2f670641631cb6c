"""What ``x402kit inspect`` says of a wallet service's own document: that it is one, and what it accepts."""

from __future__ import annotations

from typing import Any

from ..model import Json
from ..protocols.encoding import parse_object
from .report import Report, network_text

__all__ = ["explain_wallet"]


def explain_wallet(body: str, url: str, report: Report) -> bool:
    """Whether an answer is such a document (wire.md 1.6 row 22): its networks, and where its balances are."""
    try:
        said = parse_object(body.encode(), floats=True)
    except ValueError:
        return False
    networks, places = said.get("networks"), said.get("endpoints")
    if not isinstance(networks, list) or not isinstance(places, dict) or not {"top_up", "balance"} <= places.keys():
        return False
    entries: list[Any] = networks  # pyright: ignore[reportUnknownVariableType]  # JSON
    objects: list[Json] = [entry for entry in entries if isinstance(entry, dict)]
    report.kind, report.decoded = "wallet-service", said
    report.say("A wallet service, where prepaid balances are topped up; it asks for no payment itself")
    for entry in objects:
        if isinstance(network := entry.get("network"), str):
            report.say(f"  takes top-ups on {network_text(network)}")
    report.say(f"  x402kit wallet {url} info says more")
    return True
