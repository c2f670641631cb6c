"""What a seller gives a paywall, read and checked: rails, origin, rules, and the resource that a price makes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any, Final, cast
from urllib.parse import urlsplit

from ..errors import ConfigError
from ..networks.assets import TESTNETS
from ..networks.lightning import Lightning
from ..networks.lightning_port import REGTEST
from ..networks.port import Rail
from ..paywall.options import check_known, check_options
from ..paywall.resource import Resource
from ..pricing import Dynamic, price_of

__all__ = ["check_rails", "check_shared", "origin_of", "resource_of", "rule_of"]

_TOP_UP: Final = frozenset(("credits", "canonical", "amounts"))
_LISTS: Final = ("headers", "networks", "protocols")


def resource_of(name: str, price: Any, given: Mapping[str, Any]) -> Resource:
    """A route's resource by the options of ``paid()``; it is called ``name`` unless they say ``id``. ``ConfigError``
    for a price that is none, and for an option that is none or has a wrong value.
    """
    if _TOP_UP & given.keys():
        raise ConfigError(f"{name}: a payment becomes balance at the wallet service alone")
    check_known(name, given)
    options: dict[str, Any] = {"id": name, **given}
    for several in _LISTS:
        options[several] = _listed(options.get(several, ()))
    check_options(name, **options)
    options["headers"] = tuple(sorted({header.lower() for header in options["headers"]}))
    needs_body, metered = options.pop("needs_body", None), options.pop("metered", False)
    made = Resource(price=price_of(price, needs_body=needs_body, metered=metered), **options)
    if made.ask_usage and not (made.metered and made.price.needs_body):
        raise ConfigError(
            f"{name}: ask_usage is for a price that counts usage and reads the body: Tokens, Metered, or a function "
            "with metered=True; this one is the same whatever is used"
        )
    return made


def _listed(value: Any) -> Any:
    if isinstance(value, str | bytes) or not isinstance(value, Iterable):
        return value  # which is told of
    return tuple(cast("Iterable[object]", value))


def check_shared(made: Resource, others: Iterable[Resource], *, chosen: bool) -> None:
    """Several routes may share an id, and with it their passes, at one price. ``ConfigError`` for an id that was
    ``chosen`` and is known to have two; for one that a function's name gave, where a pass would open both: what was
    paid for the cheap one is good for the dear one (``pass_bound``).
    """
    for other in others:
        if other.id != made.id or not _differ(made.price, other.price):
            continue
        if chosen:
            raise ConfigError(f"id {made.id!r} has another price already: routes that share an id have one price")
        if made.l402 is not None and made.l402.seconds and made.l402 == other.l402:
            raise ConfigError(f"{made.id}: two routes of this name sell the same pass at two prices; give each its id=")


def _differ(one: Any, other: Any) -> bool:
    """Whether two prices are known to be two: nobody can tell that of functions."""
    if type(one) is not type(other):
        return True
    if isinstance(one, Dynamic) or not is_dataclass(one):
        return False
    return any(getattr(one, each.name) != getattr(other, each.name) for each in fields(one) if each.init)


def check_rails(rails: Sequence[Rail | Lightning]) -> None:
    """Raises ``ConfigError`` for rails that can't be in one paywall."""
    if not rails:
        raise ConfigError("a paywall needs at least one rail to be paid on")
    # Regtest, a chain on this machine, goes with either: a local EVM chain has a real one's number.
    if len({rail.network in TESTNETS for rail in rails if rail.network != REGTEST}) > 1:
        raise ConfigError("a paywall takes real money or test money, not both (L07)")
    if len({(rail.network, rail.asset.address) for rail in rails}) > len({rail.network for rail in rails}):
        # What a payment leaves over must be where its payer's proof finds it.
        raise ConfigError("a paywall takes one asset on each network: balances are kept in it")
    if sum(isinstance(rail, Lightning) for rail in rails) > 1:
        raise ConfigError("a paywall takes one Lightning node")


def rule_of(text: str, value: Any) -> tuple[Any, dict[str, Any]]:
    """The price of a rule and its options. A table of models is a mapping, and a price."""
    options: dict[str, Any] = {"price": value}
    if isinstance(value, Mapping) and not hasattr(cast("Any", value), "quote"):
        options = dict(cast("Mapping[str, Any]", value))
    if "price" not in options:
        raise ConfigError(f"{text}: no price")
    return options.pop("price"), options


def origin_of(text: str) -> str:
    """The public origin in one spelling, empty where there is none. Raises ``ConfigError``."""
    if not text:
        return ""
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.netloc or parts.path not in ("", "/") or parts.query:
        raise ConfigError(f'the origin is written like "https://api.example.com", not {text!r}')
    return f"{parts.scheme}://{parts.netloc}".lower()
