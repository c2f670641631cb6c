"""What the caveats of an L402 token allow: each one narrows, none that we don't know is let pass (G01, G07). Pure.

services=<name>:<tier>[,…]        the service asked for is in the list; a later list only takes away
<service>_valid_until=<seconds>   before that time; a later one is no later
amount_msat=<n>                   the call costs no more; a later one is no more
route=<id>  request=<hex>  preimage=<64 hex digits>       equal, however often they come
"""

from __future__ import annotations

from collections.abc import Sequence

from ..money import parse_atomic

__all__ = ["CaveatRefused", "check_caveats", "standard_caveats"]


class CaveatRefused(ValueError):
    """A token is good but not for this call; ``reason`` is a published reason string. Nothing was charged."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)


def standard_caveats(
    *, service: str, route: str, amount: int, valid_until: int | None = None, request: str = ""
) -> tuple[bytes, ...]:
    """The caveats of a fresh token. ``amount`` in msat; ``valid_until`` and ``request`` bind it where they are given.

    Raises ``ValueError`` where the service's name would read as something else.
    """
    if not service or set(service) & set(",:="):
        raise ValueError("a service's name holds no comma, colon or equals sign")
    made = [f"services={service}:0", f"route={route}", f"amount_msat={amount}"]
    if valid_until is not None:
        made.append(f"{service}_valid_until={valid_until}")
    if request:
        made.append(f"request={request}")
    return tuple(caveat.encode() for caveat in made)


def check_caveats(
    caveats: Sequence[bytes], *, service: str, route: str, request: str, amount: int, now: int, preimage: bytes
) -> None:
    """Whether a token's caveats are met by this call, which costs ``amount`` msat. Raises ``CaveatRefused``.

    A token without ``services`` is refused: it would be good everywhere.
    """
    until = f"{service}_valid_until"
    equal = {"route": route, "request": request, "preimage": preimage.hex()}
    services: set[str] | None = None
    least: dict[str, int] = {}
    for caveat in caveats:
        name, value = _split(caveat)
        if name == "services":
            services = _narrowed(services, value)
        elif name in ("amount_msat", until):
            least[name] = _lower(least.get(name), value)
        elif equal.get(name) != (value.lower() if name == "preimage" else value):
            raise CaveatRefused(f"wrong_{name}" if name in equal else "caveat_unknown")
    if services is None or not any(entry.partition(":")[0] == service for entry in services):
        raise CaveatRefused("wrong_service")
    _check_least(least.get(until), least.get("amount_msat"), now, amount)


def _check_least(valid_until: int | None, most: int | None, now: int, amount: int) -> None:
    if valid_until is not None and valid_until <= now:
        raise CaveatRefused("token_expired")
    if most is not None and most < amount:
        raise CaveatRefused("amount_too_low")


def _split(caveat: bytes) -> tuple[str, str]:
    try:
        name, equals, value = caveat.decode().partition("=")
    except ValueError as e:
        raise CaveatRefused("caveat_malformed") from e
    if not equals:
        raise CaveatRefused("caveat_malformed")
    return name, value


def _narrowed(before: set[str] | None, value: str) -> set[str]:
    entries = set(value.split(","))
    if before is not None and not entries <= before:
        raise CaveatRefused("caveat_widened")
    return entries


def _lower(before: int | None, value: str) -> int:
    try:
        number = parse_atomic(value)
    except ValueError as e:
        raise CaveatRefused("caveat_malformed") from e
    if before is not None and number > before:
        raise CaveatRefused("caveat_widened")
    return number
