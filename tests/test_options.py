"""What a seller sets is looked at where it is given: one table of what is refused, and one of what is taken."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from tests.support.rails import OfflineRail
from x402kit import Metered, Models, Pass, Paywall, PerImage, Tokens
from x402kit.errors import ConfigError
from x402kit.model import VALID_FOR_MAX

TOKENS = Tokens(input="$1/M", output="$1/M")
MODELS = Models({"models": {"demo": {"request": "$1"}}})


async def goods(_request: object) -> None:
    """An endpoint, which is never asked."""


async def app(_scope: object, _receive: object, _send: object) -> None:
    """An app, which is never asked."""


def below_500(status: int) -> bool:
    return status < 500


def by_usage(_call: object, *_usage: object) -> str:
    return "$1"


async def later(_status: int) -> bool:
    return True


def made(folder: Path, **options: Any) -> Paywall:
    given: dict[str, Any] = {"accepts": [OfflineRail()], "ledger": folder / "payments.db", **options}
    return Paywall(**given)


def seconds(option: str, *, zero: bool = False) -> list[tuple[str, Any, str]]:
    """What is no time: told of in the same way for each of them."""
    values = ["5", -1, math.inf, math.nan, True, None, 10**9, *([] if zero else [0])]
    return [(option, value, f"{option} is a number of seconds") for value in values]


ROUTE: list[tuple[str, Any, str]] = [
    ("confirmations", "2", r"confirmations is a whole number of blocks, 0 or more, .*, not '2' \(str\)"),
    *(("confirmations", value, "confirmations is a whole") for value in (-1, 1.5, True, 2**31)),
    *seconds("stall_seconds"),
    *seconds("start_seconds"),
    *seconds("body_seconds"),
    *(("keep_bytes", value, "keep_bytes is a whole number of bytes") for value in ("1K", -1, 1.5, True, None)),
    *(("body_limit", value, "body_limit is a whole number of bytes") for value in ("1K", -1, 1.5)),
    *(("charge", value, "charge is a function") for value in (200, None, later)),
    ("unless", True, "unless is a function"),
    *(
        ("max_timeout_seconds", value, r"max_timeout_seconds is .* from 7 to 7200, not .* \((int|float|str)\)")
        for value in (5, 6, "300", 7201, 60.0, 0)
    ),
    ("settle", "later", r"settle is one of before, after, not 'later'"),
    ("settle", None, "settle is one of"),
    ("overage", "charges", "overage is one of clamp, charge"),
    *(("ask_usage", value, "ask_usage is True or False") for value in ("no", 1, None)),
    ("report_usage", "no", "report_usage is True or False"),
    ("metered", "yes", "metered is True or False"),
    ("needs_body", "no", "needs_body is True, False or None"),
    ("description", 5, "description is text"),
    ("mime_type", None, "mime_type is text"),
    ("cache_control", "no-store\r\nx: y", "cache_control is text that can stand in a header"),
    ("cache_control", None, "cache_control is text"),
    ("headers", "x-size", "headers is a list"),
    ("headers", ["x size"], "headers is a list"),
    ("headers", [5], "headers is a list"),
    ("protocols", "x402", "protocols is a list of l402, lsat, payment, x402"),
    ("protocols", ["x403"], "protocols is a list of"),
    ("protocols", None, "protocols is a list of"),
    ("networks", "eip155:8453", "networks is a list"),
    ("networks", ["eip155:1"], "no rail"),
    ("l402", 5, "l402 is a Pass"),
    ("id", "", "id is a name"),
    ("ask_usages", True, r"paid\(\).* no option 'ask_usages'; did you mean ask_usage\?"),
    ("max_timeout", 300, r"did you mean max_timeout_seconds\?"),
    ("zzz", 300, "no option 'zzz'; there are .*stall_seconds"),
]


@pytest.mark.parametrize(("option", "value", "said"), ROUTE)
def test_a_routes_option_is_refused_where_it_is_given(tmp_path: Path, option: str, value: Any, said: str) -> None:
    paywall = made(tmp_path)
    with pytest.raises(ConfigError, match=f"goods: .*{said}"):
        paywall.paid(TOKENS, **{option: value})(goods)
    with pytest.raises(ConfigError, match=f"POST /x: .*{said}"):
        paywall.protect(app, {"POST /x": {"price": TOKENS, option: value}})
    if option != "id":
        with pytest.raises(ConfigError, match=f"the id: .*{said}"):
            paywall.price(TOKENS, id="the id", **{option: value})


PAYWALL: list[tuple[str, Any, str]] = [
    ("accepts", OfflineRail(), r"accepts is a list of rails, .* not a value of the type OfflineRail"),
    ("accepts", [goods], "not a list of function"),
    ("accepts", "base", "accepts is a list"),
    ("accepts", None, "accepts is a list"),
    ("ledger", None, "ledger is a file's path"),
    ("origin", None, "origin is text"),
    ("service", "", "service is a name"),
    *(
        ("secret", value, "secret is bytes or text of 16 bytes or more")
        for value in ("sesame", b"sesame", [b"x" * 16, "sesame"], 5, [5], bytearray(16))
    ),
    ("protocols", "x402", "protocols is a list"),
    ("protocols", ["x403"], "protocols is a list"),
    ("payment_header", "X-Key", "payment_header is one of Authorization, Payment-Authorization"),
    ("strict", "no", "strict is True or False"),
    *seconds("drain_seconds", zero=True),
    *seconds("settle_seconds", zero=True),
    *seconds("reconcile_seconds"),
]


@pytest.mark.parametrize(("option", "value", "said"), PAYWALL)
def test_a_paywalls_option_is_refused_where_it_is_given(tmp_path: Path, option: str, value: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=f"Paywall: .*{said}") as raised:
        made(tmp_path, **{option: value})
    assert "sesame" not in str(raised.value)


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("minimum", 1, r'minimum is an amount such as "\$1", not 1 \(int\)'),
        ("minimum", "1", "minimum is an amount"),
        ("maximum", None, "maximum is an amount"),
        ("withdraw", "no", "withdraw is True or False"),
        ("dialect", "mars", "dialect is one of katana, venice"),
    ],
)
def test_a_wallet_services_option_is_refused_where_it_is_given(
    tmp_path: Path, option: str, value: Any, said: str
) -> None:
    with pytest.raises(ConfigError, match=f"wallet_service: {said}"):
        made(tmp_path).wallet_service(**{option: value})


@pytest.mark.parametrize(
    "options",
    [
        {"confirmations": None, "stall_seconds": 5, "start_seconds": 0.2, "body_seconds": 1, "keep_bytes": 0},
        {"confirmations": 0, "body_limit": 0, "max_timeout_seconds": 7, "charge": bool, "unless": later},
        {"max_timeout_seconds": VALID_FOR_MAX, "cache_control": "", "settle": "after", "overage": "charge"},
        {"headers": iter(["X-Size", "x-size"]), "protocols": {"x402"}, "networks": ["eip155:8453"]},
        {"l402": Pass(calls=5), "needs_body": None, "metered": False, "ask_usage": True, "report_usage": True},
        {"id": "the chat", "description": "für alle", "mime_type": "text/plain", "charge": below_500},
    ],
)
def test_what_is_meant_is_taken(tmp_path: Path, options: dict[str, Any]) -> None:
    made(tmp_path).paid(TOKENS, **options)(goods)


@pytest.mark.parametrize("secret", [None, "", (), "x" * 16, b"x" * 16, ["ä" * 8, b"x" * 16]])
def test_a_paywall_takes_its_secret_in_each_form(tmp_path: Path, secret: Any) -> None:
    made(tmp_path, secret=secret, drain_seconds=0, settle_seconds=0, reconcile_seconds=0.1, accepts=(OfflineRail(),))


@pytest.mark.parametrize("price", ["$1", by_usage, Metered(quote=by_usage, cost=by_usage, needs_body=False)])
def test_usage_is_not_asked_for_where_nobody_reads_it(tmp_path: Path, price: Any) -> None:
    with pytest.raises(ConfigError, match="goods: ask_usage is for a price that counts usage"):
        made(tmp_path).paid(price, ask_usage=True)(goods)


def test_a_table_of_models_is_a_price_in_a_rule_too(tmp_path: Path) -> None:
    made(tmp_path).protect(app, {"POST /v1/chat/completions": MODELS})


# Routes that share an id


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("$1", "$2"),
        ("$1", TOKENS),
        (TOKENS, Tokens(input="$1/M", output="$2/M")),
        (PerImage(sizes={"a": "$1"}), PerImage(sizes={"a": "$2"})),
    ],
)
def test_an_id_has_one_price(tmp_path: Path, one: Any, other: Any) -> None:
    paywall = made(tmp_path)
    paywall.price(one, id="x")
    with pytest.raises(ConfigError, match="id 'x' has another price already"):
        paywall.price(other, id="x")
    with pytest.raises(ConfigError, match="id 'x' has another price already"):
        paywall.paid(other, id="x")(goods)
    paywall.price(other, id="y")


@pytest.mark.parametrize(("one", "other"), [("$1", "$1.00"), (TOKENS, Tokens(input="$1/M", output="$1/M"))])
def test_routes_of_one_price_may_share_an_id(tmp_path: Path, one: Any, other: Any) -> None:
    paywall = made(tmp_path)
    paywall.price(one, id="x", l402=Pass(seconds=60))
    paywall.price(other, id="x", l402=Pass(seconds=60))


def test_whether_two_functions_are_one_price_nobody_can_tell(tmp_path: Path) -> None:
    paywall = made(tmp_path)
    paywall.price(lambda call: "$1", id="x")
    paywall.price(lambda call: "$2", id="x")


def test_a_pass_does_not_open_a_dearer_route_of_the_same_function_name(tmp_path: Path) -> None:
    def sold(paywall: Paywall, price: str, **options: Any) -> None:
        @paywall.paid(price, **options)
        async def endpoint(_request: object) -> None: ...

    paywall, hour = made(tmp_path), Pass(seconds=3600)
    for price in ("$1", "$2"):
        sold(paywall, price)
        sold(paywall, price, l402=Pass(calls=5))
        sold(paywall, price, l402=hour, id=price)
    sold(paywall, "$1", l402=hour)
    sold(paywall, "$1", l402=hour)
    with pytest.raises(ConfigError, match="endpoint: two routes of this name sell the same pass at two prices"):
        sold(paywall, "$2", l402=hour)
