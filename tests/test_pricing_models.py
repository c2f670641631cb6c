"""Prices of many models from a file: read, checked at start, shown to everybody."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest

from x402kit import Call, usd
from x402kit.errors import BadRequest, ConfigError
from x402kit.pricing import Models, PerImage, PerRequest, PerSecond, Tokens, Usage, price_of

TOML = """
[defaults]
minimum = "$0.0005"
step = "$0.0001"

[models.demo]
input = "$0.50/M"
output = "$0.80/M"
cached = "$0.05/M"
max_output = 4096
default_output = 256
tiers = [{above = 200000, input = "$1/M"}]
owned_by = "us"
context_length = 1000000

[models."org/vision-2.5"]
input = "$1/M"
per_part = {image_url = 1500}
minimum = "$0.001"
missing = "ceiling"

[models.painter]
images = {"1024x1024" = "$0.04"}
default = "1024x1024"

[models.film]
second = "$0.10"
max_seconds = 60

[models.weather]
request = "$0.01"
"""


def call(body: Any) -> Call:
    return Call("POST", "/v1/chat/completions", b"", [], {}, json.dumps(body).encode())


@pytest.fixture
def models(tmp_path: Path) -> Models:
    (tmp_path / "models.toml").write_text(TOML)
    return Models.load(tmp_path / "models.toml")


async def ceiling(models: Models, body: Any) -> str:
    return str((await models.quote(call(body))).ceiling)


async def test_a_call_has_the_price_of_its_model(models: Models) -> None:
    assert price_of(models) is models
    assert models.needs_body
    assert await ceiling(models, {"model": "painter", "n": 2}) == "$0.08"
    assert await ceiling(models, {"model": "film", "seconds": 2}) == "$0.2"
    assert await ceiling(models, {"model": "weather"}) == "$0.01"
    assert await ceiling(models, {"model": "demo", "messages": []}) == "$0.0005"
    assert await ceiling(models, {"model": "demo", "max_tokens": 4096}) == "$0.0034"
    assert [type(models[name]) for name in models] == [Tokens, Tokens, PerImage, PerSecond, PerRequest]
    assert len(models) == 5


async def test_defaults_are_for_models_with_tokens_that_say_nothing_else(models: Models) -> None:
    demo, vision = models["demo"], models["org/vision-2.5"]
    assert isinstance(demo, Tokens)
    assert isinstance(vision, Tokens)
    assert demo.cost(Usage(1)) == usd("$0.0005")
    assert vision.cost(Usage(1)) == usd("$0.001")
    assert vision.missing == "ceiling"
    assert demo.cost(Usage(200_001)) == usd("$0.2001")


@pytest.mark.parametrize("body", [{"model": "none"}, {"model": None}, {"model": 5}, {"model": ["demo"]}, {}])
async def test_a_model_without_a_price_is_refused(models: Models, body: Any) -> None:
    with pytest.raises(BadRequest) as caught:
        await models.quote(call(body))
    assert caught.value.reason == "unknown_model"


def test_the_list_shows_prices_in_the_files_words(models: Models) -> None:
    shown = models.public()
    assert shown["object"] == "list"
    demo, vision, painter, film, weather = shown["data"]
    assert demo == {
        "id": "demo",
        "object": "model",
        "created": 0,
        "owned_by": "us",
        "context_length": 1_000_000,
        "max_output": 4096,
        "default_output": 256,
        "pricing": {
            "currency": "USD",
            "input": "$0.50/M",
            "output": "$0.80/M",
            "cached": "$0.05/M",
            "tiers": [{"above": 200_000, "input": "$1/M"}],
            "minimum": "$0.0005",
            "step": "$0.0001",
        },
    }
    assert vision["max_output"] == 16_000
    assert "per_part" not in json.dumps(shown)
    assert painter["pricing"] == {"currency": "USD", "images": {"1024x1024": "$0.04"}}
    assert film["pricing"] == {"currency": "USD", "second": "$0.10"}
    assert film["max_seconds"] == 60
    assert weather["pricing"] == {"currency": "USD", "request": "$0.01"}
    demo["pricing"]["tiers"].clear()
    assert models.public()["data"][0]["pricing"]["tiers"]


def test_json_is_read_too(tmp_path: Path) -> None:
    path = tmp_path / "models.json"
    path.write_text(json.dumps({"models": {"demo": {"input": "$1/M"}}}))
    assert list(Models.load(str(path))) == ["demo"]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("models.toml", "[models"),
        ("models.json", "{"),
        ("models.json", '{"models":{},"models":{}}'),
        ("models.json", "[]"),
        ("models.toml", ""),
        ("models.yaml", "models:"),
        ("models.toml", "\udcff"),
    ],
)
def test_a_file_that_is_none_is_refused(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(ConfigError, match="models"):
        Models.load(tmp_path / name)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.toml"):
        Models.load(tmp_path / "none.toml")


def test_every_fault_is_named_with_its_place() -> None:
    table: dict[str, Any] = {
        "model": {},
        "defaults": {"mininum": "$1", "step": 0.1},
        "models": {
            "a": {"input": 0.5, "output": "$1", "max_output": -1, "colour": "red"},
            "b": {},
            "c": {"images": {"1x1": 4}, "by": "size"},
            "d": 3,
            "e": {"input": "$1/M", "second": "$1"},
            "f": {"input": "$1/M", "tiers": [{"input": "$1/M"}], "per_part": {"image": "x"}},
            "g": {"input": "$1/M", "tiers": {"above": 5, "inputs": "$1/M"}},
            "h": {"images": {}, "owned_by": 5},
        },
    }
    with pytest.raises(ConfigError) as caught:
        Models(table, place="our prices")
    first, *lines = str(caught.value).split("\n  ")
    assert first == "our prices:"
    places = sorted(line.partition(": ")[0] for line in lines)
    assert places == [
        *("defaults.mininum", "defaults.step", "model"),
        *("models.a.colour", "models.a.input", "models.a.max_output", "models.a.output", "models.b"),
        *("models.c.by", "models.c.images", "models.d", "models.e", "models.f.per_part", "models.f.tiers"),
        *("models.g.tiers", "models.h.images", "models.h.owned_by"),
    ]


def test_faults_that_only_a_whole_price_has_are_named_too() -> None:
    models = {
        "a": {"input": "$0/M"},
        "b": {"second": "$1"},
        "c": {"input": "$1/M", "tiers": [{"above": 5, "inputs": "$1/M"}]},
        "d": {"input": "$1/M", "missing": "free"},
        "e": {"images": {"a": "$1"}, "default": "b"},
        "f": {"request": "$1"},
    }
    with pytest.raises(ConfigError) as caught:
        Models({"models": models})
    lines = str(caught.value).split("\n  ")[1:]
    assert [line.partition(": ")[0] for line in lines] == [f"models.{name}" for name in "abcde"]


@pytest.mark.parametrize("before", ["", '[models.gpt-4]\ninput = "$1/M"\n'])
@pytest.mark.parametrize("name", ["gpt-4.1", "gpt-4.1.mini"])
def test_a_name_with_dots_that_is_not_quoted_is_told_of(name: str, before: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Models(tomllib.loads(f'{before}[models.{name}]\ninput = "$1/M"\n'))
    said = f'models.{name}: a name with dots is written in quotes: [models."{name}"]'
    assert str(caught.value).split("\n  ")[1:] == [said]
    assert list(Models(tomllib.loads(f'[models."{name}"]\ninput = "$1/M"\n'))) == [name]


def test_the_file_in_the_documentation_is_read() -> None:
    page = (Path(__file__).parent.parent / "docs" / "metering.md").read_text()
    text = page.partition("```toml\n")[2].partition("```")[0]
    assert len(Models(tomllib.loads(text))) == 5
