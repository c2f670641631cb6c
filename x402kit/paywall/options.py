"""What a seller may set, and what is taken for it: of a route, of the paywall and of its wallet service.

All of it is looked at where it is given. A wrong value would else be found by the first call, when its money has moved.
"""

from __future__ import annotations

import difflib
import inspect
import os
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple, cast, get_args

from ..errors import ConfigError
from ..ledger.port import Overage
from ..model import VALID_FOR_MAX, VALID_FOR_MIN
from ..money import usd
from ..pricing import Pass
from .binding import SECRET_MIN
from .resource import PROTOCOLS

__all__ = ["check_known", "check_options", "secrets_of"]

_COUNT_MAX: Final = 2**31 - 1
_SECONDS_MAX: Final = 366 * 86_400
_TOKEN: Final = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+\Z", re.ASCII)
_FIELD: Final = re.compile(r"[\t\x20-\x7e]*\Z", re.ASCII)
_Fits = Callable[[Any], bool]


class _Kind(NamedTuple):
    """``what`` is taken, in words that go on after "is"; ``shown``: whether a wrong value may stand in the error."""

    what: str
    fits: _Fits
    shown: bool = True


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and bool(value) and value.isprintable()


def _is_flag(value: Any) -> bool:
    return isinstance(value, bool)


def _is_function(value: Any) -> bool:
    return callable(value) and not inspect.iscoroutinefunction(value)


def _is_time(value: Any) -> bool:
    """A bool is no number, and what is no number of its own (NaN) is within no bounds."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= _SECONDS_MAX


def _is_some_time(value: Any) -> bool:
    return _is_time(value) and value > 0


def _is_pass(value: Any) -> bool:
    return isinstance(value, Pass)


def _whole(least: int, most: int = _COUNT_MAX) -> _Fits:
    def fits(value: Any) -> bool:
        return type(value) is int and least <= value <= most

    return fits


def _written(pattern: re.Pattern[str]) -> _Fits:
    def fits(value: Any) -> bool:
        return isinstance(value, str) and pattern.match(value) is not None

    return fits


def _among(names: Collection[str]) -> _Fits:
    def fits(value: Any) -> bool:
        return isinstance(value, str) and value in names

    return fits


def _or_none(inner: _Fits) -> _Fits:
    def fits(value: Any) -> bool:
        return value is None or inner(value)

    return fits


def _list_of(inner: _Fits) -> _Fits:
    def fits(value: Any) -> bool:
        is_list = isinstance(value, Collection) and not isinstance(value, str | bytes)
        return is_list and all(map(inner, cast("Collection[object]", value)))

    return fits


def _one_of(*names: str) -> _Kind:
    return _Kind(f"one of {', '.join(names)}", _among(names))


def _is_rails(value: Any) -> bool:
    return isinstance(value, Sequence) and all(
        hasattr(rail, "network") and hasattr(rail, "asset") for rail in cast("Sequence[object]", value)
    )


def _is_ledger(value: Any) -> bool:
    return isinstance(value, str | os.PathLike) or hasattr(value, "start")


def _is_amount(value: Any) -> bool:
    try:
        usd(value)
    except ConfigError:
        return False
    return True


def _is_secret(value: Any) -> bool:
    return isinstance(value, bytes | str) and len(_bytes(value)) >= SECRET_MIN


def _is_secrets(value: Any) -> bool:
    return value is None or value in ("", b"") or _is_secret(value) or _list_of(_is_secret)(value)


_TIMEOUT_MIN: Final = VALID_FOR_MIN + 1
"""A payment that is good for no longer is too old when it comes."""
_TEXT: Final = _Kind("text", _is_text)
_NAME: Final = _Kind("a name, printable text", _is_name)
_FLAG: Final = _Kind("True or False", _is_flag)
_SIZE: Final = _Kind("a whole number of bytes, 0 or more", _whole(0))
_TIME: Final = _Kind("a number of seconds, 0 or more, at most a year", _is_time)
_SOME_TIME: Final = _Kind("a number of seconds above 0, at most a year", _is_some_time)
_PROTOCOLS: Final = _Kind(f"a list of {', '.join(sorted(PROTOCOLS))}", _list_of(_among(PROTOCOLS)))
_AMOUNT: Final = _Kind('an amount such as "$1"', _is_amount)

_ROUTE: Final[Mapping[str, _Kind]] = {
    "id": _NAME,
    "description": _TEXT,
    "mime_type": _TEXT,
    "settle": _one_of("before", "after"),
    "confirmations": _Kind("a whole number of blocks, 0 or more, or None for the rail's own", _or_none(_whole(0))),
    "max_timeout_seconds": _Kind(
        f"a whole number of seconds from {_TIMEOUT_MIN} to {VALID_FOR_MAX}", _whole(_TIMEOUT_MIN, VALID_FOR_MAX)
    ),
    "charge": _Kind("a function of the status that is not async", _is_function),
    "body_limit": _SIZE,
    "body_seconds": _SOME_TIME,
    "keep_bytes": _SIZE,
    "cache_control": _Kind("text that can stand in a header", _written(_FIELD)),
    "headers": _Kind("a list of names of headers", _list_of(_written(_TOKEN))),
    "overage": _one_of(*get_args(Overage)),
    "stall_seconds": _SOME_TIME,
    "start_seconds": _SOME_TIME,
    "report_usage": _FLAG,
    "ask_usage": _FLAG,
    "protocols": _PROTOCOLS,
    "networks": _Kind('a list of networks in CAIP-2, such as ["eip155:8453"]', _list_of(_is_name)),
    "l402": _Kind("a Pass, or None", _or_none(_is_pass)),
    "unless": _Kind("a function of the headers, or None", _or_none(callable)),
    "needs_body": _Kind("True, False or None", _or_none(_is_flag)),
    "metered": _FLAG,
}
_PAYWALL: Final[Mapping[str, _Kind]] = {
    "accepts": _Kind("a list of rails, also where it is one: accepts=[Base(…)]", _is_rails, shown=False),
    "ledger": _Kind("a file's path, postgresql://… or a store", _is_ledger, shown=False),
    "origin": _TEXT,
    "service": _NAME,
    "protocols": _PROTOCOLS,
    "secret": _Kind(
        f"bytes or text of {SECRET_MIN} bytes or more, or a list of such with the newest first",
        _is_secrets,
        shown=False,
    ),
    "payment_header": _one_of("Authorization", "Payment-Authorization"),
    "strict": _FLAG,
    "drain_seconds": _TIME,
    "settle_seconds": _TIME,
    "reconcile_seconds": _SOME_TIME,
}
_WALLET: Final[Mapping[str, _Kind]] = {
    "minimum": _AMOUNT,
    "maximum": _AMOUNT,
    "withdraw": _FLAG,
    "dialect": _one_of("katana", "venice"),
}
_KINDS: Final = {**_ROUTE, **_PAYWALL, **_WALLET}


def check_options(place: str, **given: Any) -> None:
    """Raises ``ConfigError`` for the first option whose value is not what it takes. Each must be in the table."""
    for name, value in given.items():
        kind = _KINDS[name]
        if not kind.fits(value):
            raise ConfigError(f"{place}: {name} is {kind.what}, not {_shown(value, kind)}")


def check_known(place: str, given: Iterable[str]) -> None:
    """Raises ``ConfigError`` for a name that is no option of a route, with the one that may be meant."""
    for name in given:
        if name not in _ROUTE:
            near = difflib.get_close_matches(str(name), _ROUTE, 1)
            meant = f"did you mean {near[0]}?" if near else f"there are {', '.join(sorted(_ROUTE))}"
            raise ConfigError(f"{place}: paid(), price() and rules have no option {name!r}; {meant}")


def _shown(value: Any, kind: _Kind) -> str:
    name = type(value).__name__
    if kind.shown and isinstance(value, str | int | float) and len(text := repr(value)) <= 80:
        return f"{text} ({name})"
    if isinstance(value, list | tuple):
        held = {type(each).__name__ for each in cast("Sequence[object]", value)}
        return f"a {name} of {', '.join(sorted(held)) or 'nothing'}"
    return f"a value of the type {name}"


def secrets_of(secret: bytes | str | Sequence[bytes | str] | None) -> tuple[bytes, ...]:
    """As bytes, none where there is none; what ``check_options`` has passed."""
    if not secret:
        return ()
    return (_bytes(secret),) if isinstance(secret, bytes | str) else tuple(_bytes(each) for each in secret)


def _bytes(secret: bytes | str) -> bytes:
    return secret.encode(errors="surrogatepass") if isinstance(secret, str) else secret
