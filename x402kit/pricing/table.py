"""Prices of many models from one file, TOML or JSON, checked wholly at start. The format: docs/metering.md."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple, cast

from ..errors import BadRequest, ConfigError
from ..money import usd
from ..protocols.encoding import parse_object
from .price import Call, Price, Quote
from .prompt import body_of
from .rates import rate
from .tokens import Tokens
from .units import PerImage, PerRequest, PerSecond

__all__ = ["Models"]

Table = Mapping[str, Any]
Checks = dict[str, Callable[[object], object]]


def _whole(value: object) -> None:
    if type(value) is not int or value < 0:
        raise ConfigError(f"a whole number, not {value!r}")


def _text(value: object) -> None:
    if not isinstance(value, str):
        raise ConfigError(f"text, not {value!r}")


def _dollars(value: object) -> None:
    usd(value)  # type: ignore[arg-type]  # it says what it wants instead


def _sizes(value: object) -> None:
    if not isinstance(value, dict) or not value:
        raise ConfigError('sizes with their prices, {"1024x1024" = "$0.04"}')
    for price in cast("Table", value).values():
        usd(price)


def _bounds(value: object) -> None:
    for bound in cast("Table", value).values() if isinstance(value, dict) else [value]:
        _whole(bound)


def _names(value: object) -> None:
    if not isinstance(value, list) or not all(isinstance(name, str) for name in cast("list[object]", value)):
        raise ConfigError(f"a list of names, not {value!r}")


def _tiers(value: object) -> None:
    for tier in cast("list[object]", value) if isinstance(value, list) else [None]:
        if not isinstance(tier, dict) or "above" not in tier:
            raise ConfigError('a list such as [{above = 200000, input = "$1/M"}]')
        for name, text in cast("Table", tier).items():
            _whole(text) if name == "above" else rate(text)


class _Kind(NamedTuple):
    """One kind of price: the keys that it has in a file and their checks; those that are prices are shown to all."""

    prices: Checks
    others: Checks
    make: Callable[[dict[str, Any]], Price]


def _tokens(given: dict[str, Any]) -> Price:
    tiers: list[dict[str, Any]] = given.pop("tiers", [])
    read = [(tier["above"], {name: text for name, text in tier.items() if name != "above"}) for tier in tiers]
    return Tokens(**given, tiers=read)


def _images(given: dict[str, Any]) -> Price:
    return PerImage(sizes=given.pop("images"), **given)


def _seconds(given: dict[str, Any]) -> Price:
    if "max_seconds" not in given:
        raise ConfigError("max_seconds is missing")
    return PerSecond(rate=given.pop("second"), **given)


def _request(given: dict[str, Any]) -> Price:
    return PerRequest(given["request"])


_TOKENS: Final = _Kind(
    {
        **dict.fromkeys(("input", "output", "cached", "cache_write"), rate),
        "tiers": _tiers,
        **dict.fromkeys(("minimum", "step"), _dollars),
    },
    {
        "reserve": _dollars,
        **dict.fromkeys(("max_output", "default_output", "overhead", "bytes_per_token"), _whole),
        "per_part": _bounds,
        "missing": _text,
    },
    _tokens,
)
_KINDS: Final = {
    "input": _TOKENS,
    "output": _TOKENS,
    "images": _Kind(
        {"images": _sizes},
        {"default": _text, "count": _text, "by": _names, "max_count": _whole, "missing": _text},
        _images,
    ),
    "second": _Kind(
        {"second": _dollars}, {"max_seconds": _whole, "default": _whole, "field": _text, "missing": _text}, _seconds
    ),
    "request": _Kind({"request": _dollars}, {}, _request),
}
_SHOWN: Final[Checks] = {"owned_by": _text, "created": _whole, "description": _text, "context_length": _whole}
_LIMITS: Final = ("max_output", "default_output", "max_seconds")


class Models(Mapping[str, Price]):
    """A price for each model; a call has the one of the model that its JSON body names, else it is ``BadRequest``.

    ``table`` is what a file holds. Raises ``ConfigError`` that names every fault in it, each with its place.
    """

    needs_body: Final = True

    def __init__(self, table: Table, *, place: str = "models") -> None:
        faults: list[str] = []
        self._prices: dict[str, Price] = {}
        self._shown: list[dict[str, Any]] = []
        for name, given, kind in _entries(table, faults):
            try:
                price = kind.make({key: value for key, value in given.items() if key not in _SHOWN})
            except ConfigError as e:
                faults.append(f"models.{name}: {e}")
            else:
                self._prices[name] = price
                limits = {"max_output": price.max_output} if isinstance(price, Tokens) else {}
                self._shown.append(_public(name, {**limits, **given}, kind))
        if faults:
            raise ConfigError("\n  ".join([f"{place}:", *faults]))

    @classmethod
    def load(cls, path: str | Path) -> Models:
        """Read a ``.toml`` or ``.json`` file. Raises ``ConfigError``."""
        path = Path(path)
        readers: dict[str, Callable[[bytes], Table]] = {
            ".toml": _read_toml,
            ".json": lambda data: parse_object(data, floats=True),
        }
        if path.suffix not in readers:
            raise ConfigError(f"{path}: a table of models is a .toml or a .json file")
        try:
            table = readers[path.suffix](path.read_bytes())
        except (OSError, ValueError) as e:
            raise ConfigError(f"{path}: {e}") from e
        return cls(table, place=str(path))

    async def quote(self, call: Call) -> Quote:
        name = body_of(call).get("model")
        price = self._prices.get(name) if isinstance(name, str) else None
        if price is None:
            why = f"there is no price for the model {name[:80]!r}" if isinstance(name, str) else "model must be a text"
            raise BadRequest("unknown_model", detail=why)
        return await price.quote(call)

    def public(self) -> dict[str, Any]:
        """What ``GET /v1/models`` shows: OpenAI's list, with ``pricing`` in the words of the file."""
        return {"object": "list", "data": copy.deepcopy(self._shown)}

    def __getitem__(self, name: str) -> Price:
        return self._prices[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._prices)

    def __len__(self) -> int:
        return len(self._prices)


def _entries(table: Table, faults: list[str]) -> Iterator[tuple[str, dict[str, Any], _Kind]]:
    """Each model whose keys are all right, with what it says; ``defaults`` filled in where it is priced by tokens."""
    faults += [f"{name}: no such table, only defaults and models" for name in sorted(table.keys() - _TABLES)]
    defaults, models = table.get("defaults", {}), table.get("models", {})
    if not isinstance(defaults, dict) or not isinstance(models, dict) or not models:
        faults.append("models: there must be at least one; defaults is a table")
        return
    defaults, models = cast("dict[str, Any]", defaults), cast("dict[str, Any]", models)
    faults += _faults("defaults", defaults, _TOKENS.prices | _TOKENS.others)
    sound = not faults
    for name, value in models.items():
        given = cast("dict[str, Any]", value) if isinstance(value, dict) else {}
        kinds = {id(kind): kind for key, kind in _KINDS.items() if key in given}
        if len(kinds) != 1:
            dotted = _dotted(name, given)
            faults.append(dotted or f"models.{name}: exactly one kind of price is wanted, of {', '.join(_KINDS)}")
            continue
        (kind,) = kinds.values()
        found = _faults(f"models.{name}", given, {**kind.prices, **kind.others, **_SHOWN})
        faults += found
        if sound and not found:
            yield name, {**defaults, **given} if kind is _TOKENS else given, kind


_TABLES: Final = {"defaults", "models"}


def _faults(place: str, given: Table, checks: Checks) -> list[str]:
    found: list[str] = []
    for key, value in given.items():
        if key not in checks:
            dotted = _dotted(place.removeprefix("models."), {key: value}) if place != "defaults" else ""
            found.append(dotted or f"{place}.{key}: no such key")
            continue
        try:
            checks[key](value)
        except ConfigError as e:
            found.append(f"{place}.{key}: {e}")
    return found


def _dotted(name: str, given: Table) -> str:
    """What to tell of a name with dots that stands without quotes, which TOML reads as a table in a table."""
    for key, value in given.items():
        if isinstance(value, dict) and key not in _KINDS:
            inner = cast("Table", value)
            longer = f"{name}.{key}"
            if not _KINDS.keys().isdisjoint(inner):
                return f'models.{longer}: a name with dots is written in quotes: [models."{longer}"]'
            if found := _dotted(longer, inner):
                return found
    return ""


def _public(name: str, given: Table, kind: _Kind) -> dict[str, Any]:
    shown: dict[str, Any] = {"id": name, "object": "model", "created": 0, "owned_by": ""}
    shown |= {key: given[key] for key in (*_SHOWN, *_LIMITS) if key in given}
    return {**shown, "pricing": {"currency": "USD", **{key: given[key] for key in kind.prices if key in given}}}


def _read_toml(data: bytes) -> Table:
    import tomllib  # only who has such a table pays for it (2 ms)

    return tomllib.loads(data.decode())
