"""The examples as they are served and run: over uvicorn, with our payer, the openai SDK, and a real chain."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import httpx2
import openai
import pytest

from tests.support.commands import environment, run
from tests.support.example import ROOT, seller_of, served
from tests.support.wallet_proofs import evm_wallet, header, katana
from x402kit.client import Limits, Payer, PrepaidWallet, payment_of
from x402kit.devnet import EvmDevnet
from x402kit.money import format_units, parse_units
from x402kit.protocols.x402 import decode_header

INPUT, OUTPUT, MINIMUM = 5, 20, 500
"""Atomic units of USDC: for a token read, for a token written, for a call."""
HELLO = [{"role": "user", "content": "Hello there, how are you?"}]
HELLO_TOKENS = 8
"""Hello, there "," how are you "?", and one for the role."""


@pytest.fixture(scope="module")
def chain() -> Iterator[EvmDevnet]:
    """A chain of this module's own: the seller's ledger must not outlive a snapshot."""
    with EvmDevnet() as made:
        yield made


@pytest.fixture(scope="module")
def ledger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("seller") / "payments.db"


@pytest.fixture(scope="module")
def url(chain: EvmDevnet, ledger: Path) -> Iterator[str]:
    with served("examples.inference:app", seller_of(chain, ledger)) as found:
        yield found


@pytest.fixture
def payer(chain: EvmDevnet) -> Iterator[Payer]:
    made = Payer(chain.accounts[1].private_key, limits=Limits(per_call="$0.50"), allow_insecure=True)
    yield made
    made.close()


@pytest.fixture
def client(url: str, payer: Payer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=url, transport=payer.transport(), timeout=30) as made:
        yield made


@pytest.fixture
def unpaid(url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=url, timeout=30) as made:
        yield made


@pytest.fixture
def spent(chain: EvmDevnet) -> Iterator[Any]:
    """What the payer has paid since the test began; at its end the seller must have got all of it."""

    def moved() -> tuple[int, int]:
        payer, seller = (chain.balance_of(account.address) for account in chain.accounts[1::-1])
        return payer, seller

    before = moved()
    yield lambda: before[0] - moved()[0]
    after = moved()
    assert before[0] - after[0] == after[1] - before[1]


def ceiling(content: bytes, most: int) -> int:
    """The most that a chat can cost: by the bytes of its body, what a template may add, and its cap."""
    return max(MINIMUM, (len(content) + 64) * INPUT + most * OUTPUT)


def cost(read: int, written: int) -> int:
    return max(MINIMUM, read * INPUT + written * OUTPUT)


def asked(answer: httpx.Response) -> int:
    assert answer.status_code == 402, answer.text
    return int(decode_header(answer.headers["payment-required"])["accepts"][0]["amount"])


# Prices


def test_the_model_and_its_prices_are_free_to_see(unpaid: httpx.Client) -> None:
    answer = unpaid.get("/v1/models")
    (model,) = answer.json()["data"]
    assert (answer.status_code, model["id"], model["object"]) == (200, "demo", "model")
    assert model["pricing"] == {"currency": "USD", "input": "$5/M", "output": "$20/M", "minimum": "$0.0005"}
    assert (model["max_output"], model["default_output"], model["owned_by"]) == (4096, 256, "x402kit")


@pytest.mark.parametrize(
    ("cap", "most"),
    [
        ({}, 256),
        ({"max_tokens": None}, 256),
        ({"max_tokens": 100}, 100),
        ({"max_completion_tokens": 4096}, 4096),
        ({"max_tokens": 50, "max_completion_tokens": 60}, 60),
    ],
)
def test_a_chat_costs_what_it_can_cost_at_most(unpaid: httpx.Client, cap: dict[str, Any], most: int) -> None:
    answer = unpaid.post("/v1/chat/completions", json={"model": "demo", "messages": HELLO, **cap})
    assert asked(answer) == ceiling(answer.request.content, most)


def test_the_ceiling_grows_with_the_prompt(unpaid: httpx.Client) -> None:
    parts = [{"type": "text", "text": "a b c d "}, {"type": "text", "text": "e" * 80}]
    body = {"model": "demo", "messages": [*HELLO, {"role": "user", "content": parts}], "max_tokens": 30}
    answer = unpaid.post("/v1/chat/completions", json=body)
    assert asked(answer) == ceiling(answer.request.content, 30) > 30 * OUTPUT + 88 * INPUT


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"model": "gpt"}, "unknown_model"),
        ({"model": 7}, "model"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages"),
        ({"max_tokens": 4097}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"n": 2}, "n"),
    ],
)
def test_what_can_not_be_served_is_refused_unpaid(client: httpx.Client, spent: Any, changes: Any, field: str) -> None:
    body = {"model": "demo", "messages": HELLO, **changes}
    answer = client.post("/v1/chat/completions", json=body)
    assert (answer.status_code, spent()) == (400, 0)
    assert answer.json()["reason"].startswith(field)


def test_errors_of_the_app_have_openais_shape(unpaid: httpx.Client) -> None:
    for path, status in (("/v1/generation-requests/none", 404), ("/v1/nothing", 404)):
        answer = unpaid.get(path)
        assert answer.status_code == status
        assert answer.json()["error"]["type"] == "invalid_request_error"
    assert unpaid.delete("/v1/models").json()["error"]["message"] == "Method Not Allowed"


# Calls


def test_the_weather_has_a_fixed_price(client: httpx.Client, spent: Any) -> None:
    answer = client.get("/v1/weather", params={"city": "Rome"})
    assert answer.json() == {"city": "Rome", "weather": "sunny", "temperature_c": 24}
    info = payment_of(answer)
    assert info is not None
    assert info.verified
    assert (info.amount, spent()) == (10_000, 10_000)


def test_a_chat_counts_its_tokens_and_honours_the_cap(client: httpx.Client, spent: Any) -> None:
    body = {"model": "demo", "messages": HELLO, "max_tokens": 12}
    first = client.post("/v1/chat/completions", json=body)
    made = first.json()
    (choice,) = made["choices"]
    assert choice["finish_reason"] == "length"
    assert choice["message"]["content"] == "You asked: Hello there, how are you. I am"
    assert counted(made["usage"]) == (HELLO_TOKENS, 12, HELLO_TOKENS + 12)
    whole = client.post("/v1/chat/completions", json={**body, "max_tokens": 1_000})
    made = whole.json()
    assert made["choices"][0]["finish_reason"] == "stop"
    assert 12 < made["usage"]["completion_tokens"] < 1_000
    assert spent() == ceiling(first.request.content, 12) + ceiling(whole.request.content, 1_000)


def counted(usage: Any) -> tuple[int, int, int]:
    return usage["prompt_tokens"], usage["completion_tokens"], usage["total_tokens"]


def test_what_a_payment_was_above_the_cost_becomes_balance(client: httpx.Client) -> None:
    answer = client.post("/v1/chat/completions", json={"model": "demo", "messages": HELLO, "max_tokens": 1_000})
    info = payment_of(answer)
    assert info is not None
    assert (info.source, info.verified) == ("payment", True)
    used = answer.json()["usage"]
    charged = cost(*counted(used)[:2])
    returned, balance = info.amount - charged, info.balance
    assert (info.charged, info.returned) == (charged, returned)
    assert balance is not None
    assert balance >= returned > 0
    bill = {
        "billing_source": "payment",
        "reserved_usdc": format_units(info.amount, 6),
        "charged_usdc": format_units(charged, 6),
        "refunded_usdc": format_units(returned, 6),
        "wallet_balance_after_usdc": format_units(balance, 6),
    }
    assert bill.items() <= used["x402kit"].items()


def events(answer: httpx.Response) -> list[Any]:
    lines = [line for line in answer.text.split("\n\n") if line]
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


def test_a_streamed_chat_says_the_same_and_ends_with_its_usage(client: httpx.Client) -> None:
    body = {"model": "demo", "messages": HELLO, "max_tokens": 25}
    plain = client.post("/v1/chat/completions", json=body).json()
    answer = client.post(
        "/v1/chat/completions", json={**body, "stream": True, "stream_options": {"include_usage": True}}
    )
    assert answer.headers["content-type"].startswith("text/event-stream")
    *chunks, last = events(answer)
    text = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)
    assert text == plain["choices"][0]["message"]["content"]
    assert [chunk["usage"] for chunk in chunks] == [None] * len(chunks)
    assert (last["choices"], counted(last["usage"])) == ([], counted(plain["usage"]))
    assert last["usage"]["x402kit"]["charged_usdc"] == plain["usage"]["x402kit"]["charged_usdc"]
    assert chunks[-1]["choices"][0]["finish_reason"] == "length"
    without = events(client.post("/v1/chat/completions", json={**body, "stream": True}))
    assert all("usage" not in chunk for chunk in without)
    assert len(without) == len(chunks)


def test_a_stream_streams(client: httpx.Client) -> None:
    body = {"model": "demo", "messages": HELLO, "stream": True}
    times: list[float] = []
    with client.stream("POST", "/v1/chat/completions", json=body) as answer:
        times.extend(time.monotonic() for _ in answer.iter_raw())
    assert len(times) > 20
    assert times[-1] - times[0] > 0.05


def ended(unpaid: httpx.Client, place: str) -> Any:
    """A job that is asked for until it has ended."""
    end = time.monotonic() + 10
    while (told := unpaid.get(place).json())["status"] == "queued":
        assert time.monotonic() < end
        time.sleep(0.1)
    return told


def test_images_are_paid_when_asked_for_and_fetched_when_done(
    client: httpx.Client, unpaid: httpx.Client, spent: Any
) -> None:
    body = {"requests": [{"type": "image", "model": "demo", "prompt": "a <cat>"}, {"prompt": "a dog"}]}
    answer = client.post("/v1/generation-requests", params={"wait": "false"}, json=body)
    assert (answer.status_code, spent()) == (202, 40_000)
    job = answer.json()
    assert job["status"] == "queued"
    assert re.fullmatch(r"gen_[\w-]{32}", job["request_id"])
    place = answer.headers["location"]
    assert place == f"/v1/generation-requests/{job['request_id']}"
    assert job.pop("status_url").startswith(f"{unpaid.base_url}/v1/jobs/")
    assert unpaid.get(place).json() == job
    done = ended(unpaid, place)
    assert done["status"] == "succeeded"
    assert [result["prompt"] for result in done["results"]] == ["a <cat>", "a dog"]
    assert "a &lt;cat&gt;" in done["results"][0]["svg"]
    assert done["billing"] == {
        "reserved_usdc": "0.040000",
        "charged_usdc": "0.040000",
        "refunded_usdc": "0.000000",
    }
    assert unpaid.post("/v1/generation-requests", json={"requests": []}).status_code == 400


def test_a_job_is_followed_by_signed_links_without_credentials(client: httpx.Client, unpaid: httpx.Client) -> None:
    body = {"requests": [{"prompt": "a cat"}, {"prompt": "?!"}, {"prompt": "a <dog>"}]}
    answer = client.post("/v1/generation-requests", json=body)
    job = answer.json()
    link = job["status_url"]
    assert unpaid.get(link).json() == {"status": "queued", "poll_after_seconds": job["poll_after_seconds"]}
    done = ended(unpaid, link)
    # Who was given the link alone does not get the id, which is good for longer.
    assert job["request_id"] not in unpaid.get(link).text
    by_id = unpaid.get(answer.headers["location"]).json()
    assert done["billing"] == by_id["billing"]
    assert [("result_url" in image, image["prompt"]) for image in done["results"]] == [
        (True, "a cat"),
        (False, "?!"),
        (True, "a <dog>"),
    ]
    for image in (done["results"][2], by_id["results"][2]):
        shown = unpaid.get(image["result_url"])
        assert (shown.status_code, shown.text, shown.headers["content-type"]) == (200, image["svg"], "image/svg+xml")
        assert shown.headers["content-security-policy"].startswith("sandbox")
    assert unpaid.head(link).status_code == 200
    until = int(link.partition("expires=")[2].partition("&")[0])
    assert until - time.time() == pytest.approx(24 * 3600, abs=60)


def test_a_link_is_good_for_nothing_else(client: httpx.Client, unpaid: httpx.Client) -> None:
    body = {"requests": [{"prompt": "a cat"}, {"prompt": "?!"}]}
    links = [client.post("/v1/generation-requests", json=body).json()["status_url"] for _ in range(2)]
    image = ended(unpaid, links[0])["results"][0]["result_url"]
    one, other = (link.partition("?")[0] for link in links)
    query = links[0].partition("?")[2]
    until = int(query.partition("expires=")[2].partition("&")[0])
    for url in (
        one,
        f"{other}?{query}",
        f"{one}/images/0?{query}",
        f"{one}?{query.replace(str(until), str(until + 1))}",
        f"{links[0]}&a=1",
        image.replace("images/0", "images/1"),
    ):
        answer = unpaid.get(url)
        assert (answer.status_code, answer.json()["reason"]) == (403, "link_invalid"), url
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.headers["cache-control"] == "no-store"
    assert unpaid.delete(links[0]).status_code == 405
    assert unpaid.get(links[0].replace("/jobs/", "/%6Aobs/")).status_code == 200  # the same path, as it is routed


def test_an_image_that_can_not_be_drawn_is_refunded(client: httpx.Client, unpaid: httpx.Client) -> None:
    body = {"requests": [{"prompt": "a cat"}, {"prompt": "?!"}, {"prompt": "a dog"}]}
    done = ended(unpaid, client.post("/v1/generation-requests", json=body).headers["location"])
    assert [result["status"] for result in done["results"]] == ["succeeded", "failed", "succeeded"]
    assert done["results"][1]["error"] == "there is no word in the prompt to draw"
    bill = {"reserved_usdc": "0.060000", "charged_usdc": "0.040000", "refunded_usdc": "0.020000"}
    assert (done["status"], done["billing"]) == ("succeeded", bill)
    done = ended(
        unpaid, client.post("/v1/generation-requests", json={"requests": [{"prompt": "…"}]}).headers["location"]
    )
    assert (done["status"], done["billing"]["refunded_usdc"]) == ("failed", "0.020000")


def test_a_job_that_was_paid_for_outlives_a_restart(tmp_path: Path, payer: Payer) -> None:
    with EvmDevnet() as chain:  # a settlement wallet belongs to one ledger
        env = seller_of(chain, tmp_path / "payments.db")
        with (
            served("examples.inference:app", env) as url,
            httpx.Client(base_url=url, transport=payer.transport()) as client,
        ):
            body = {"requests": [{"prompt": "a cat"}, {"prompt": "!"}]}
            place = client.post("/v1/generation-requests", json=body).headers["location"]
        assert run("ledger", "totals", env["X402KIT_LEDGER"]).out.count('"holds": 40000')
        with served("examples.inference:app", env) as url, httpx.Client(base_url=url) as unpaid:
            done = ended(unpaid, place)
            assert (done["status"], done["billing"]["charged_usdc"]) == ("succeeded", "0.020000")
        totals = json.loads(run("ledger", "totals", env["X402KIT_LEDGER"]).out)["assets"]
        (sums,) = totals.values()
        assert (sums["revenue"], sums["available"], sums["held"], sums["holds"]) == (20_000, 20_000, 0, 0)


# From a balance


@pytest.fixture
def prepaid(url: str, chain: EvmDevnet) -> Iterator[tuple[httpx.Client, PrepaidWallet]]:
    """A payer who never pays for a call by itself, with twenty cents at the seller."""
    limits = Limits(per_call="$0.50")
    made = Payer(chain.accounts[2].private_key, limits=limits, balance="only", allow_insecure=True)
    with httpx.Client(base_url=url, transport=made.transport(), timeout=30) as client:
        wallet = made.wallet(f"{url}/v1/x402", client)
        assert wallet.top_up("0.20").problem == ""
        yield client, wallet
    made.close()


def test_a_balance_is_charged_what_a_call_used(prepaid: tuple[httpx.Client, PrepaidWallet], chain: EvmDevnet) -> None:
    client, wallet = prepaid
    seller, before = chain.balance_of(chain.accounts[0].address), wallet.balance().available
    body = {"model": "demo", "messages": HELLO, "max_tokens": 500}
    answer = client.post("/v1/chat/completions", json=body)
    info = payment_of(answer)
    assert info is not None
    used = cost(*counted(answer.json()["usage"])[:2])
    assert (info.source, info.reserved, info.charged) == ("balance", ceiling(answer.request.content, 500), used)
    assert answer.headers["x-balance-remaining"] == format_units(before - used, 6)
    # A stream is charged by its tokens, also for a caller who does not want to hear of them.
    assert events(client.post("/v1/chat/completions", json={**body, "stream": True}))
    assert wallet.balance().available == before - 2 * used
    assert client.get("/v1/weather").status_code == 200
    moves = list(wallet.transactions(6))
    assert [move.charged or 0 for move in moves] == [10_000, 0, used, 0, used, 0]
    assert wallet.balance().available == before - 2 * used - 10_000
    assert chain.balance_of(chain.accounts[0].address) == seller


def test_who_leaves_a_stream_pays_for_what_was_written(prepaid: tuple[httpx.Client, PrepaidWallet]) -> None:
    client, wallet = prepaid
    before = wallet.balance().available
    body = {"model": "demo", "messages": HELLO, "max_tokens": 500, "stream": True}
    with client.stream("POST", "/v1/chat/completions", json=body) as answer:
        next(answer.iter_lines())
    end = time.monotonic() + 10
    while (left := wallet.balance()).held:
        assert time.monotonic() < end
        time.sleep(0.05)
    assert MINIMUM <= before - left.available <= cost(HELLO_TOKENS, 200)


def test_a_job_holds_the_balance_until_it_ends(
    prepaid: tuple[httpx.Client, PrepaidWallet], unpaid: httpx.Client
) -> None:
    client, wallet = prepaid
    before = wallet.balance().available
    body = {"requests": [{"prompt": "a cat"}, {"prompt": "?!"}, {"prompt": "a dog"}]}
    answer = client.post("/v1/generation-requests", json=body)
    assert (answer.status_code, wallet.balance().held) == (202, 60_000)
    done = ended(unpaid, answer.headers["location"])
    assert done["billing"]["refunded_usdc"] == "0.020000"
    left = wallet.balance()
    assert (left.available, left.held) == (before - 40_000, 0)


def test_the_wallet_service_says_what_it_takes(unpaid: httpx.Client, chain: EvmDevnet) -> None:
    told = unpaid.get("/v1/x402").json()
    assert (told["service"], told["networks"][0]["payTo"]) == ("x402kit", chain.accounts[0].address)
    assert told["endpoints"]["top_up"] == f"{unpaid.base_url}/v1/x402/top-up".replace("//v1", "/v1")
    assert "withdraw" not in told["endpoints"]
    assert unpaid.post("/v1/x402/withdraw").status_code in (404, 405)
    assert unpaid.post("/v1/x402/top-up", json={"amount_usdc": "1.00"}).status_code == 402
    assert unpaid.post("/api/v1/x402/top-up").status_code == 402


def test_a_proof_as_katanas_clients_make_it(unpaid: httpx.Client, chain: EvmDevnet) -> None:
    wallet = evm_wallet(bytes.fromhex(chain.accounts[4].private_key[2:]))
    proof = header(katana(wallet, int(time.time()), service="x402kit")).decode()
    place = f"/v1/x402/balance/{wallet.address}"
    assert unpaid.get(place).status_code == 402
    told = unpaid.get(place, headers={"X-Sign-In-With-X": proof}).json()
    assert (told["wallet_address"], told["balance_usdc"]) == (chain.accounts[4].address, "0.000000")


def test_it_runs_on_postgresql(own_chain: EvmDevnet, database: str, tmp_path: Path) -> None:
    env = {**seller_of(own_chain, tmp_path / "unused.db"), "X402KIT_LEDGER": database}
    limits = Limits(per_call="$0.50")
    payer = Payer(own_chain.accounts[1].private_key, limits=limits, balance="first", allow_insecure=True)
    with (
        served("examples.inference:app", env, cwd=tmp_path) as url,
        httpx.Client(base_url=url, transport=payer.transport(), timeout=30) as client,
    ):
        body = {"model": "demo", "messages": HELLO, "max_tokens": 2_000}
        sources: list[str] = []
        for _ in range(2):  # what the payment left is enough for the second
            info = payment_of(client.post("/v1/chat/completions", json=body | {"max_tokens": 12 if sources else 2_000}))
            assert info is not None
            sources.append(info.source)
        payer.wallet(f"{url}/v1/x402", client).top_up("0.10")
        answer = client.post("/v1/generation-requests", json={"requests": [{"prompt": "a cat"}, {"prompt": "!"}]})
        assert ended(client, answer.headers["location"])["billing"]["refunded_usdc"] == "0.020000"
    payer.close()
    assert sources == ["payment", "balance"]
    assert run("ledger", "verify", database).status == 0
    (sums,) = json.loads(run("ledger", "totals", database).out)["assets"].values()
    assert sums["held"] == 0
    assert (
        sums["revenue"] + sums["available"] == -sums["external"] == own_chain.balance_of(own_chain.accounts[0].address)
    )


def test_without_a_rail_it_says_what_to_set() -> None:
    done = subprocess.run(
        (sys.executable, "-m", "uvicorn", "examples.inference:app", "--app-dir", str(ROOT)),
        env=environment({"X402KIT_ENV": "devnet"}),
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    assert done.returncode != 0
    assert "X402KIT_EVM_RPC_URL" in done.stderr


# The openai SDK, unchanged


def test_the_openai_sdk_pays(url: str, payer: Payer, spent: Any) -> None:
    http = httpx2.Client(transport=payer.httpx2_transport())
    with openai.OpenAI(base_url=url + "/v1", api_key="-", http_client=http) as sdk:
        assert [model.id for model in sdk.models.list()] == ["demo"]
        raw = sdk.chat.completions.with_raw_response.create(
            model="demo", messages=[{"role": "user", "content": "hi"}], max_tokens=5
        )
        info = payment_of(raw.http_response)
        assert info is not None
        assert info.verified
        made = raw.parse()
        assert made.choices[0].message.content == "You asked: hi."
        assert made.usage is not None
        assert made.usage.completion_tokens == 5
        with pytest.raises(openai.BadRequestError):
            sdk.chat.completions.create(model="gpt", messages=[{"role": "user", "content": "hi"}])
    assert spent() == ceiling(raw.http_response.request.content, 5)
    assert info.charged == MINIMUM


def test_the_openai_sdk_pays_for_a_stream(url: str, payer: Payer, spent: Any) -> None:
    http = httpx2.Client(transport=payer.httpx2_transport())
    with openai.OpenAI(base_url=url + "/v1", api_key="-", http_client=http) as sdk:
        stream = sdk.chat.completions.create(
            model="demo",
            messages=[{"role": "user", "content": "hi"}],
            max_completion_tokens=5,
            stream=True,
            stream_options={"include_usage": True},
        )
        chunks = list(stream)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == "You asked: hi."
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.total_tokens == 2 + 5
    assert 5 * OUTPUT + 64 * INPUT < spent() < 5 * OUTPUT + 300 * INPUT


def test_the_async_openai_sdk_pays(url: str, payer: Payer, spent: Any) -> None:
    async def talk() -> list[str | None]:
        http = httpx2.AsyncClient(transport=payer.async_httpx2_transport())
        async with openai.AsyncOpenAI(base_url=url + "/v1", api_key="-", http_client=http) as sdk:
            calls = (
                sdk.chat.completions.create(model="demo", messages=[{"role": "user", "content": f"{n}"}], max_tokens=5)
                for n in range(8)
            )
            return [made.choices[0].message.content for made in await asyncio.gather(*calls)]

    assert asyncio.run(talk()) == [f"You asked: {n}." for n in range(8)]
    assert 8 * 5 * OUTPUT + 8 * 64 * INPUT < spent() < 8 * (5 * OUTPUT + 300 * INPUT)


# The command line against it


def test_pay_and_inspect_on_a_real_chain(url: str, chain: EvmDevnet, tmp_path: Path, spent: Any) -> None:
    env = {"X402KIT_EVM_KEY": chain.accounts[1].private_key, "XDG_STATE_HOME": str(tmp_path)}
    done = run("inspect", "--allow-insecure", f"{url}/v1/weather")
    assert (done.status, json.loads(done.out)["problems"]) == (0, [])
    done = run("pay", "--allow-insecure", f"{url}/v1/weather", env=env)
    assert (done.status, json.loads(done.out)["weather"]) == (0, "sunny")
    receipt = json.loads(done.err)
    found: Any = chain.rpc("eth_getTransactionReceipt", receipt["transaction"])
    assert found["status"] == "0x1"
    assert spent() == int(receipt["amount"]) == 10_000
    assert run("pay", "--allow-insecure", f"{url}/v1/weather?again", "--max-amount", "0.001", env=env).status == 4
    assert run("pay", "--allow-insecure", f"{url}/v1/nothing", env=env).status == 1
    assert spent() == 10_000


# The agent, and the README's server and client


def script(name: str, *arguments: str, env: dict[str, str], cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        (sys.executable, str(ROOT / "examples" / name), *arguments),
        env=environment(env),
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_the_agent_stays_within_its_budget_and_says_what_it_spent(url: str, chain: EvmDevnet, tmp_path: Path) -> None:
    env = {"X402KIT_EVM_KEY": chain.accounts[3].private_key}
    seller = chain.balance_of(chain.accounts[0].address)
    done = script("agent.py", url, "$0.03", env=env, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    calls = sum(parse_units(text, 6) for text in re.findall(r"^  \$([\d.]+) for ", done.stdout, re.MULTILINE))
    assert 20_000 < calls <= 30_000
    assert done.stdout.count("  topped up $0.010000, 0x") == 3
    assert f"Calls of this run: ${format_units(calls, 6)}. Paid today: $0.030000 of $0.03." in done.stdout
    assert "The budget is used up" in done.stdout
    again = script("agent.py", url, "$0.03", env=env, cwd=tmp_path)
    assert again.returncode == 0
    assert "Paid today: $0.030000 of $0.03." in again.stdout
    assert "topped up" not in again.stdout
    assert chain.balance_of(chain.accounts[0].address) - seller == 30_000


def test_the_agent_ends_its_work_when_there_is_money(url: str, chain: EvmDevnet, tmp_path: Path) -> None:
    done = script("agent.py", url, "$1", env={"X402KIT_EVM_KEY": chain.accounts[1].private_key}, cwd=tmp_path)
    assert "The work is done." in done.stdout
    assert len(re.findall(r"^  \$[\d.]+ for ", done.stdout, re.MULTILINE)) == 12
    assert "0 payment(s) or call(s) with an open outcome." in done.stdout


def test_the_agent_without_a_seller(chain: EvmDevnet, tmp_path: Path) -> None:
    env = {"X402KIT_EVM_KEY": chain.accounts[1].private_key}
    done = script("agent.py", "http://127.0.0.1:9", env=env, cwd=tmp_path)
    assert done.returncode == 1
    assert "Stopped: " in done.stdout


@pytest.mark.parametrize("missing", ["X402KIT_EVM_PAY_TO", "X402KIT_EVM_KEY", "X402KIT_EVM_RPC_URL"])
def test_the_weather_says_what_to_set(missing: str, chain: EvmDevnet, tmp_path: Path) -> None:
    env = {name: value for name, value in seller_of(chain, tmp_path / "unused.db").items() if name != missing}
    said = failed("-m", "uvicorn", "examples.weather_server:app", "--app-dir", str(ROOT), env=env)
    assert said == f"{missing} is not set\n"


def test_the_weathers_client_says_what_to_set() -> None:
    said = failed(str(ROOT / "examples" / "weather_client.py"), "http://127.0.0.1:8000/weather", env={})
    assert said == "X402KIT_EVM_KEY is not set\n"


def test_a_key_that_is_none_is_told_in_a_line(chain: EvmDevnet, tmp_path: Path) -> None:
    env = {**seller_of(chain, tmp_path / "unused.db"), "X402KIT_EVM_KEY": "0xkey"}
    said = failed("-m", "uvicorn", "examples.weather_server:app", "--app-dir", str(ROOT), env=env)
    assert re.fullmatch(r"X402KIT_EVM_…: key is .*\n", said)
    client = str(ROOT / "examples" / "weather_client.py")
    said = failed(client, "http://127.0.0.1:8000/weather", env={"X402KIT_EVM_KEY": "0xkey"})
    assert re.fullmatch(r"X402KIT_EVM_KEY: evm_key is .*\n", said)


@pytest.mark.parametrize("name", ["weather_client.py", "agent.py"])
def test_2_without_an_argument_there_is_a_line_of_usage(name: str) -> None:
    done = script(name, env={"X402KIT_EVM_KEY": "0x" + "11" * 32}, cwd=ROOT)
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(r"usage: .* URL.*\n", done.stderr)


def test_without_an_origin_the_agent_is_told_why_it_can_not_spend(chain: EvmDevnet, tmp_path: Path) -> None:
    env = {**seller_of(chain, tmp_path / "payments.db"), "X402KIT_ORIGIN": ""}
    with served("examples.inference:app", env) as url:
        done = script("agent.py", url, env={"X402KIT_EVM_KEY": chain.accounts[4].private_key}, cwd=tmp_path)
    assert done.returncode == 1
    assert f"invalid_siwx_domain_mismatch; it does not know itself as {url}" in done.stdout


def failed(*arguments: str, env: dict[str, str]) -> str:
    """What a program says that can't start."""
    done = subprocess.run(
        (sys.executable, *arguments), env=environment(env), capture_output=True, text=True, check=False, timeout=30
    )
    assert (done.returncode, done.stdout) == (1, "")
    return done.stderr
