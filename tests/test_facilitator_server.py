"""Our own facilitator over real HTTP on a real chain: read-only verify, durable settle, and who may call."""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import sqlite3
import time
from collections.abc import AsyncGenerator, Generator
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.routing import Mount

from tests.support.evm_payments import NETWORK, PAY_TO, PRICE, USDC, signed_payload
from tests.support.facilitators import BEARER, TOKEN, Front, facilitating, wallet_rail
from tests.support.faulty_facilitator import Fault
from tests.support.serving import serving
from x402kit.asgi.facilitator import facilitator_app
from x402kit.devnet import EvmDevnet
from x402kit.errors import ConfigError
from x402kit.ledger.sqlite import SQLiteStore
from x402kit.model import BYTES_NESTED_MAX, Json
from x402kit.networks import Base, EvmRail
from x402kit.networks.port import Rail

KEYED = {**BEARER, "Idempotency-Key": "what the tests repeat"}


@pytest.fixture
def front(chain: EvmDevnet, tmp_path: Path) -> Generator[Front]:
    with facilitating(chain, tmp_path / "facilitator.db") as made:
        yield made


@pytest.fixture
async def http(front: Front) -> AsyncGenerator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=front.url, headers=KEYED, timeout=30) as client:
        yield client


def requirements(**changes: Any) -> Json:
    made: Json = {
        "scheme": "exact",
        "network": NETWORK,
        "amount": str(PRICE),
        "asset": USDC.address,
        "payTo": PAY_TO,
        "maxTimeoutSeconds": 300,
        "extra": {"name": USDC.name, "version": USDC.version},
    }
    return {key: value for key, value in {**made, **changes}.items() if value is not None}


def body(payload: Json, accepted: Json | None = None, **changes: Any) -> Json:
    """A v2 call; ``changes`` are of the requirements, ``accepted`` what the payer echoed, by default the same."""
    wanted = requirements(**changes)
    payment = {"x402Version": 2, "accepted": accepted or wanted, "payload": payload}
    return {"x402Version": 2, "paymentPayload": payment, "paymentRequirements": wanted}


def body_v1(payload: Json) -> Json:
    wanted = requirements(network="base", amount=None, maxAmountRequired=str(PRICE), description="", mimeType="")
    payment = {"x402Version": 1, "scheme": "exact", "network": "base", "payload": payload}
    wanted["resource"] = "https://seller.example/"
    return {"x402Version": 1, "paymentPayload": payment, "paymentRequirements": wanted}


def claims(store: Path) -> list[str]:
    with contextlib.closing(sqlite3.connect(store)) as connection:
        return [row[0] for row in connection.execute("SELECT state FROM claims ORDER BY id")]


def settlements(chain: EvmDevnet) -> int:
    return int(chain.rpc("eth_getTransactionCount", chain.accounts[0].address, "latest"), 16)


# /supported, and who may call


async def test_supported_lists_both_versions_and_the_wallets(chain: EvmDevnet, http: httpx.AsyncClient) -> None:
    answer = await http.get("/supported")
    domain = {"name": "USD Coin", "version": "2"}
    assert answer.json() == {
        "kinds": [
            {"x402Version": 2, "scheme": "exact", "network": NETWORK, "extra": domain},
            {"x402Version": 1, "scheme": "exact", "network": "base", "extra": domain},
        ],
        "extensions": [],
        "signers": {NETWORK: [chain.accounts[0].address]},
    }
    assert answer.headers["cache-control"] == "no-store"


@pytest.mark.parametrize(
    "shown", ["", "Bearer", f"Bearer {TOKEN}x", f"Bearer {TOKEN[:-1]}", f"Basic {TOKEN}", TOKEN, "Bearer é"]
)
async def test_without_the_token_there_is_no_answer(chain: EvmDevnet, front: Front, shown: str) -> None:
    async with httpx.AsyncClient(base_url=front.url, headers=[(b"Authorization", shown.encode())]) as stranger:
        made = body(signed_payload(chain.accounts[1]))
        answers = [await stranger.post(f"/{name}", json=made) for name in ("verify", "settle")]
        answers.append(await stranger.get("/supported"))
    for answer in answers:
        assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
        assert answer.json() == {"error": "unauthorized"}
    assert claims(front.store) == []


async def test_the_scheme_is_bearer_in_any_case(front: Front) -> None:
    async with httpx.AsyncClient(base_url=front.url, headers={"Authorization": f"bearer {TOKEN}"}) as http:
        assert (await http.get("/supported")).status_code == 200


async def test_other_methods_and_paths_are_not_there(http: httpx.AsyncClient) -> None:
    assert (await http.get("/settle")).status_code == 405
    assert (await http.post("/supported", json={})).status_code == 405
    assert (await http.get("/")).status_code == 404


def test_a_facilitator_without_tokens_or_rails_is_a_set_up_fault(chain: EvmDevnet) -> None:
    rail = wallet_rail(chain)
    wrong: list[dict[str, Any]] = [
        {},
        {"token": "short"},
        {"tokens": [TOKEN, ""]},
        {"token": TOKEN, "anonymous": True},
    ]
    for settings in wrong:
        with pytest.raises(ConfigError):
            facilitator_app(":memory:", [rail], **settings)
    remote = Base(pay_to=PAY_TO, facilitator="https://facilitator.example")
    several: list[list[Rail]] = [[], [rail, wallet_rail(chain)], [remote]]
    for rails in several:
        with pytest.raises(ConfigError):
            facilitator_app(":memory:", rails, token=TOKEN)


async def test_a_rail_without_a_wallet_does_not_start(chain: EvmDevnet, tmp_path: Path) -> None:
    rail = EvmRail(NETWORK, pay_to=PAY_TO, rpc=chain.rpc_url)
    app = facilitator_app(tmp_path / "f.db", [rail], anonymous=True)
    with pytest.raises(ConfigError):
        async with app.router.lifespan_context(app):
            pass


async def test_anyone_may_call_where_the_operator_says_so(chain: EvmDevnet, tmp_path: Path) -> None:
    app = facilitator_app(tmp_path / "f.db", [wallet_rail(chain)], anonymous=True)
    with serving(app) as url:
        async with httpx.AsyncClient(base_url=url) as http:
            answer = await http.post("/settle", json=body(signed_payload(chain.accounts[1])))
    assert answer.json()["success"] is True


# /verify


async def test_verify_says_valid_and_changes_nothing(chain: EvmDevnet, front: Front, http: httpx.AsyncClient) -> None:
    made = body(signed_payload(chain.accounts[1]))
    for _ in range(3):
        answer = await http.post("/verify", json=made)
        assert (answer.status_code, answer.json()) == (200, {"isValid": True, "payer": chain.accounts[1].address})
    assert (claims(front.store), settlements(chain), chain.balance_of(PAY_TO)) == ([], 0, 0)


def _signed(chain: EvmDevnet, **changes: Any) -> Json:
    return signed_payload(chain.accounts[1], **changes)


_NOW = int(time.time())
_PREFIX = "invalid_exact_evm_payload_"


@pytest.mark.parametrize(
    ("terms", "changes", "reason"),
    [
        ({"value": PRICE - 1}, {}, _PREFIX + "authorization_value_mismatch"),
        ({"to": "0x" + "22" * 20}, {}, _PREFIX + "recipient_mismatch"),
        ({"valid_before": _NOW - 1}, {}, _PREFIX + "authorization_valid_before"),
        ({"valid_before": _NOW + 86400}, {}, _PREFIX + "authorization_valid_before"),
        ({"valid_after": _NOW + 3600}, {}, _PREFIX + "authorization_valid_after"),
        ({}, {"scheme": "upto"}, "unsupported_scheme"),
        ({}, {"network": "eip155:84532"}, "invalid_network"),
        ({}, {"asset": "0x" + "33" * 20}, "invalid_payment_requirements"),
        ({}, {"amount": "0"}, "invalid_payment_requirements"),
        ({}, {"amount": str(2**70)}, "invalid_payment_requirements"),
        ({}, {"payTo": "nobody"}, "invalid_payment_requirements"),
        ({}, {"payTo": USDC.address}, "invalid_payment_requirements"),
        ({}, {"payTo": "0x0000000000000000000000000000000000000001"}, "invalid_payment_requirements"),
        ({}, {"extra": {"name": "USDC", "version": "2"}}, "invalid_payment_requirements"),
    ],
)
async def test_a_payment_that_does_not_pass_is_an_answer(
    chain: EvmDevnet, front: Front, http: httpx.AsyncClient, terms: Json, changes: Json, reason: str
) -> None:
    made = body(_signed(chain, **terms), **changes)
    verified, settled = await http.post("/verify", json=made), await http.post("/settle", json=made)
    assert (verified.status_code, settled.status_code) == (200, 200)
    said = verified.json()
    assert (said.pop("isValid"), said.pop("invalidReason")) == (False, reason)
    assert said in ({}, {"payer": chain.accounts[1].address})
    said = settled.json()
    assert (said["success"], said["errorReason"], said["transaction"]) == (False, reason, "")
    assert claims(front.store) == []


@pytest.mark.parametrize(
    ("echo", "reason"),
    [
        ({"amount": "1"}, "invalid_payment_requirements"),
        ({"payTo": "0x" + "22" * 20}, "invalid_payment_requirements"),
        ({"asset": "0x" + "22" * 20}, "invalid_payment_requirements"),
        ({"network": "eip155:84532"}, "network_mismatch"),
        ({"scheme": "upto"}, "unsupported_scheme"),
    ],
)
async def test_an_echo_at_odds_with_the_requirements_is_refused(
    chain: EvmDevnet, http: httpx.AsyncClient, echo: Json, reason: str
) -> None:
    answer = await http.post("/verify", json=body(_signed(chain), accepted=requirements(**echo)))
    assert answer.json()["invalidReason"] == reason


async def test_what_the_echo_leaves_out_is_not_missed(chain: EvmDevnet, http: httpx.AsyncClient) -> None:
    echo = requirements(extra=None, payTo=PAY_TO.lower(), maxAmountRequired=str(PRICE), asset=USDC.address.lower())
    answer = await http.post("/verify", json=body(_signed(chain), accepted=echo, extra=None))
    assert answer.json()["isValid"] is True


async def test_what_only_the_chain_knows_is_an_answer_too(chain: EvmDevnet, http: httpx.AsyncClient) -> None:
    forged = _signed(chain)
    forged["signature"] = _signed(chain)["signature"]
    broke = signed_payload(chain.accounts[0])
    for payload, reason in ((forged, _PREFIX + "signature"), (broke, "invalid_exact_evm_insufficient_balance")):
        assert (await http.post("/verify", json=body(payload))).json()["invalidReason"] == reason
        assert (await http.post("/settle", json=body(payload))).json()["errorReason"] == reason
    assert settlements(chain) == 0


@pytest.mark.parametrize(
    "data",
    [
        *(b"", b"{", b"[]", b"null", b'"x"', b"{}", b"\xff", b'{"x402Version":2,"x402Version":2}'),
        *(b'{"x402Version":2,"paymentPayload":[],"paymentRequirements":{}}', b"[" * 1000),
    ],
)
async def test_A12_a_malformed_call_is_400_in_both_endpoints_words(http: httpx.AsyncClient, data: bytes) -> None:
    for endpoint in ("/verify", "/settle"):
        answer = await http.post(endpoint, content=data)
        assert answer.status_code == 400
        assert answer.json() == {
            "error": "payment-malformed",
            "reason": "invalid_x402_version" if data == b"{}" else "invalid_payload",
            "isValid": False,
            "invalidReason": answer.json()["reason"],
            "errorReason": answer.json()["reason"],
            "success": False,
            "transaction": "",
            "network": "",
        }


async def test_A12_malformed_parts_are_400(chain: EvmDevnet, front: Front, http: httpx.AsyncClient) -> None:
    good = body(_signed(chain))
    spoiled: list[Json] = [{**good, "x402Version": version} for version in (0, 3, "2", 2.0, True, None)]
    wrong: list[tuple[str, str, Any]] = [
        ("paymentRequirements", "amount", "1e4"),
        ("paymentRequirements", "amount", 10000),
        ("paymentRequirements", "maxAmountRequired", "10001"),
        ("paymentRequirements", "payTo", ""),
        ("paymentRequirements", "maxTimeoutSeconds", 1.5),
        ("paymentPayload", "payload", None),
        ("paymentPayload", "payload", {}),
        ("paymentPayload", "x402Version", 3),
        ("paymentPayload", "accepted", "x"),
    ]
    spoiled += [{**good, part: {**good[part], key: value}} for part, key, value in wrong]
    authorization = {**good["paymentPayload"]["payload"]["authorization"], "nonce": "0x12"}
    spoiled.append(body({**good["paymentPayload"]["payload"], "authorization": authorization}))
    for made in spoiled:
        assert (await http.post("/settle", json=made)).status_code == 400, made
    assert claims(front.store) == []


async def test_K01_a_large_body_is_413(http: httpx.AsyncClient) -> None:
    answer = await http.post("/verify", content=b" " * (BYTES_NESTED_MAX + 1))
    assert (answer.status_code, answer.json()["error"]) == (413, "body-too-large")


async def test_numbers_that_are_not_money_may_be_of_any_kind(chain: EvmDevnet, http: httpx.AsyncClient) -> None:
    made = body(_signed(chain))
    made["paymentPayload"]["extensions"] = {"bazaar": {"info": {"minimum": 0.5}}}
    assert (await http.post("/verify", json=made)).json()["isValid"] is True


# /settle


async def test_settle_pays_whoever_the_requirements_name(chain: EvmDevnet, http: httpx.AsyncClient) -> None:
    for pay_to in (PAY_TO, chain.accounts[2].address, chain.accounts[3].address.lower()):
        before = chain.balance_of(pay_to)
        answer = await http.post("/settle", json=body(_signed(chain, to=pay_to.lower()), payTo=pay_to))
        said = answer.json()
        assert (answer.status_code, said["success"], said["network"]) == (200, True, NETWORK)
        assert (said["payer"], said["amount"]) == (chain.accounts[1].address, str(PRICE))
        assert chain.rpc("eth_getTransactionReceipt", said["transaction"])["status"] == "0x1"
        assert chain.balance_of(pay_to) == before + PRICE


async def test_settle_speaks_v1(chain: EvmDevnet, http: httpx.AsyncClient) -> None:
    made = body_v1(_signed(chain))
    assert (await http.post("/verify", json=made)).json()["isValid"] is True
    said = (await http.post("/settle", json=made)).json()
    assert (said["success"], said["network"]) == (True, "base")
    assert chain.balance_of(PAY_TO) == PRICE


async def test_C03_a_repeated_settle_gets_the_stored_result(
    chain: EvmDevnet, front: Front, http: httpx.AsyncClient
) -> None:
    made = body(_signed(chain))
    first = (await http.post("/settle", json=made)).json()
    again = {**made, "paymentPayload": {**made["paymentPayload"], "accepted": requirements(extra=None)}}
    for repeated in (made, again):
        assert (await http.post("/settle", json=repeated)).json() == first
    assert (settlements(chain), claims(front.store)) == (1, ["served"])
    assert (await http.post("/verify", json=made)).json()["invalidReason"] == "invalid_exact_evm_nonce_already_used"


async def test_C08_what_was_settled_is_answered_after_its_end_and_after_a_restart(
    chain: EvmDevnet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Long after validBefore, what was settled stays settled for who asks again."""
    store = tmp_path / "facilitator.db"
    made = body(_signed(chain, valid_before=int(time.time()) + 300))
    with facilitating(chain, store) as front:
        async with httpx.AsyncClient(base_url=front.url, headers=KEYED, timeout=30) as http:
            first = (await http.post("/settle", json=made)).json()
    later = time.time() + 1000
    monkeypatch.setattr(time, "time", lambda: later)
    with facilitating(chain, store) as front:
        async with httpx.AsyncClient(base_url=front.url, headers=KEYED, timeout=30) as http:
            verified = (await http.post("/verify", json=made)).json()
            assert verified["invalidReason"] == _PREFIX + "authorization_valid_before"
            assert (await http.post("/settle", json=made)).json() == first
    assert first["success"] is True


async def test_C05_a_payment_is_not_settled_again_for_other_requirements(
    chain: EvmDevnet, front: Front, http: httpx.AsyncClient
) -> None:
    payload = _signed(chain)
    assert (await http.post("/settle", json=body(payload))).json()["success"] is True
    others: list[Json] = [{"amount": str(PRICE - 1)}, {"payTo": chain.accounts[3].address}]
    for changes in others:
        said = (await http.post("/settle", json=body(payload, **changes))).json()
        assert (said["success"], said["errorReason"]) == (False, "payment_already_used")
        assert said["transaction"] == ""
    assert settlements(chain) == 1


async def test_C05_a_payment_that_one_caller_settled_is_not_anothers(chain: EvmDevnet, tmp_path: Path) -> None:
    """Two sellers with one recipient must not both deliver for one payment."""
    app = facilitator_app(
        tmp_path / "f.db", [wallet_rail(chain)], tokens=["the first seller's token", "the second's token"]
    )
    made = body(_signed(chain))
    with serving(app) as url:
        answers: list[Json] = []
        for token in ("the first seller's token", "the second's token", "the first seller's token"):
            async with httpx.AsyncClient(base_url=url, headers={**KEYED, "Authorization": f"Bearer {token}"}) as http:
                answers.append((await http.post("/settle", json=made)).json())
    assert [answer["success"] for answer in answers] == [True, False, True]
    assert answers[1]["errorReason"] == "payment_already_used"
    assert settlements(chain) == 1


async def test_C09_both_versions_share_one_claim(chain: EvmDevnet, http: httpx.AsyncClient) -> None:
    payload = _signed(chain)
    first = (await http.post("/settle", json=body_v1(payload))).json()
    second = (await http.post("/settle", json=body(payload))).json()
    assert {**first, "network": NETWORK} == second
    assert (first["success"], settlements(chain)) == (True, 1)


async def test_C01_of_many_at_once_one_settles_and_all_are_told(
    chain: EvmDevnet, front: Front, http: httpx.AsyncClient
) -> None:
    made = body(_signed(chain))
    answers = await asyncio.gather(*(http.post("/settle", json=made) for _ in range(24)))
    said = [answer.json() for answer in answers]
    assert all(each == said[0] for each in said)
    assert said[0]["success"] is True
    assert (settlements(chain), chain.balance_of(PAY_TO), claims(front.store)) == (1, PRICE, ["served"])


async def test_C01_without_a_key_one_of_many_is_told_of_the_success(chain: EvmDevnet, front: Front) -> None:
    """To a server that keeps no record of payments two successes are two deliveries."""
    made = body(_signed(chain))
    async with httpx.AsyncClient(base_url=front.url, headers=BEARER, timeout=30) as http:
        answers = await asyncio.gather(*(http.post("/settle", json=made) for _ in range(12)))
        late = (await http.post("/settle", json=made, headers={"Idempotency-Key": "another"})).json()
    said = sorted((answer.json() for answer in answers), key=lambda each: each["success"])
    assert [each["success"] for each in said] == [False] * 11 + [True]
    for each in (*said[:11], late):
        assert (each["errorReason"], each["transaction"]) == ("duplicate_settlement", said[-1]["transaction"])
    assert settlements(chain) == 1


async def test_C01_a_success_that_one_call_began_is_told_to_no_other(chain: EvmDevnet, front: Front) -> None:
    made = body(_signed(chain))
    async with httpx.AsyncClient(base_url=front.url, headers=BEARER, timeout=30) as http:
        keys: list[dict[str, str]] = [{"Idempotency-Key": "mine"}, {}, {"Idempotency-Key": "yours"}]
        said = [(await http.post("/settle", json=made, headers=key)).json() for key in (*keys, keys[0])]
    assert [each["success"] for each in said] == [True, False, False, True]


async def test_C02_two_processes_on_one_store_settle_once(chain: EvmDevnet, front: Front) -> None:
    made = body(_signed(chain))
    with facilitating(chain, front.store) as second:
        async with httpx.AsyncClient(headers=KEYED, timeout=30) as http:
            urls = [front.url, second.url] * 6
            answers = await asyncio.gather(*(http.post(f"{url}/settle", json=made) for url in urls))
    assert [answer.json()["success"] for answer in answers] == [True] * 12
    assert settlements(chain) == 1


async def test_many_payments_at_once_all_settle(chain: EvmDevnet, http: httpx.AsyncClient) -> None:
    bodies = [body(_signed(chain)) for _ in range(12)]
    answers = await asyncio.gather(*(http.post("/settle", json=made) for made in bodies))
    assert [answer.json()["success"] for answer in answers] == [True] * 12
    assert (chain.balance_of(PAY_TO), settlements(chain)) == (12 * PRICE, 12)


async def test_I02_a_settlement_that_is_not_mined_is_pending_with_its_hash(chain: EvmDevnet, tmp_path: Path) -> None:
    with facilitating(chain, tmp_path / "f.db", settle_seconds=0.5, reconcile_seconds=60) as front:
        async with httpx.AsyncClient(base_url=front.url, headers=KEYED, timeout=30) as http:
            chain.set_automine(False)
            made = body(_signed(chain))
            first, second = await asyncio.gather(http.post("/settle", json=made), http.post("/settle", json=made))
            for answer in (first, second, await http.post("/settle", json=made)):
                said = answer.json()
                assert (answer.status_code, said["success"], said["errorReason"]) == (200, False, "settlement_pending")
                assert len(said["transaction"]) == 66
            chain.mine()
            settled = (await http.post("/settle", json=made)).json()
            assert (settled["success"], settled["transaction"]) == (True, first.json()["transaction"])
    assert settlements(chain) == 1


async def test_what_an_earlier_process_sent_is_reconciled_at_start(chain: EvmDevnet, tmp_path: Path) -> None:
    store = tmp_path / "f.db"
    made = body(_signed(chain))
    with facilitating(chain, store, settle_seconds=0.2, reconcile_seconds=60) as front:
        async with httpx.AsyncClient(base_url=front.url, headers=KEYED, timeout=30) as http:
            chain.set_automine(False)
            assert (await http.post("/settle", json=made)).json()["errorReason"] == "settlement_pending"
    chain.mine()
    chain.set_automine(True)
    await asyncio.sleep(2)
    with facilitating(chain, store) as front:
        assert claims(store) == ["settled"]
        async with httpx.AsyncClient(base_url=front.url, headers=KEYED, timeout=30) as http:
            assert (await http.post("/settle", json=made)).json()["success"] is True
    assert settlements(chain) == 1


@pytest.mark.parametrize("state", ["claimed", "sent"])
async def test_what_a_dead_process_left_is_taken_over(chain: EvmDevnet, tmp_path: Path, state: str) -> None:
    """Its lease is over; it died before, or after, it stored what it was about to send."""
    store = tmp_path / "f.db"
    made = body(_signed(chain))
    with facilitating(chain, store, settle_seconds=0.2, reconcile_seconds=60) as front:
        async with httpx.AsyncClient(base_url=front.url, headers=KEYED, timeout=30) as http:
            chain.set_automine(False)
            await http.post("/settle", json=made)
    if state == "claimed":
        chain.rpc("anvil_dropAllTransactions")
    chain.set_automine(True)
    chain.mine()
    with contextlib.closing(sqlite3.connect(store)) as connection, connection:
        columns = "lease_until = 0, next_check = 9999999999"
        connection.execute(f"UPDATE claims SET state = '{state}', {columns}")
    with facilitating(chain, store, reconcile_seconds=60) as front:
        async with httpx.AsyncClient(base_url=front.url, headers=KEYED, timeout=30) as http:
            assert (await http.post("/settle", json=made)).json()["success"] is True
    assert (settlements(chain), chain.balance_of(PAY_TO)) == (1, PRICE)


async def test_B07_a_failed_settlement_may_be_tried_again(
    chain: EvmDevnet, front: Front, http: httpx.AsyncClient
) -> None:
    """Verified, and then the payer's money was gone; once it is back, the same authorization works."""
    payer, made = chain.accounts[2], body(signed_payload(chain.accounts[2]))
    assert (await http.post("/verify", json=made)).json()["isValid"] is True
    chain.send_as_minter("blacklist(address)", payer.address)
    said = (await http.post("/settle", json=made)).json()
    assert (said["success"], said["payer"]) == (False, payer.address)
    chain.send_as_minter("unBlacklist(address)", payer.address)
    assert (await http.post("/settle", json=made)).json()["success"] is True
    assert chain.balance_of(PAY_TO) == PRICE


async def test_I01_a_chain_out_of_reach_is_503_and_leaves_no_claim(tmp_path: Path) -> None:
    with EvmDevnet() as chain:
        rail, made = wallet_rail(chain), body(_signed(chain))
    store = tmp_path / "f.db"
    with serving(facilitator_app(store, [rail], token=TOKEN)) as url:
        async with httpx.AsyncClient(base_url=url, headers=KEYED) as http:
            for endpoint in ("/verify", "/settle"):
                answer = await http.post(endpoint, json=made)
                assert (answer.status_code, answer.json()["error"]) == (503, "payment-unavailable")
                assert answer.headers["retry-after"]
                assert "127.0.0.1" not in answer.text
        assert claims(store) == []


async def test_a_mounted_facilitator_starts_with_its_first_call(chain: EvmDevnet, tmp_path: Path) -> None:
    inner = facilitator_app(tmp_path / "f.db", [wallet_rail(chain)], token=TOKEN)

    @contextlib.asynccontextmanager
    async def closing(_: Starlette) -> AsyncGenerator[None]:
        yield
        async with inner.router.lifespan_context(inner):  # for its end
            pass

    with serving(Starlette(routes=[Mount("/pay", inner)], lifespan=closing)) as url:
        async with httpx.AsyncClient(base_url=url, headers=KEYED) as http:
            both = await asyncio.gather(http.get("/pay/supported"), http.get("/pay/supported"))
            assert [answer.status_code for answer in both] == [200, 200]
            said = (await http.post("/pay/settle", json=body(_signed(chain)))).json()
    assert said["success"] is True


async def test_C07_K04_settled_claims_are_forgotten_in_time(chain: EvmDevnet, tmp_path: Path) -> None:
    """What is settled, final, past the authorization's end and past its kept time goes."""
    path = tmp_path / "f.db"
    with facilitating(chain, path) as front:
        async with httpx.AsyncClient(base_url=front.url, headers=KEYED, timeout=30) as http:
            await http.post("/settle", json=body(_signed(chain)))
    store = SQLiteStore(path)
    await store.start()
    try:
        [claim] = await store.due(int(time.time()) + 3600)
        assert claim.state == "served"
        await store.note(claim.payment_id, final=1)
        assert await store.prune(int(time.time())) == 0
        assert await store.prune(int(time.time()) + 7200) == 1
    finally:
        await store.close()


async def test_C03_a_caller_who_leaves_does_not_stop_the_settlement(chain: EvmDevnet, front: Front) -> None:
    """The money moves or not; the answer is there for who asks again."""
    made = body(_signed(chain))
    front.faulty.faults["settle"] = [Fault(delay=0.5)]
    async with httpx.AsyncClient(base_url=front.url, headers=KEYED, timeout=30) as http:
        with pytest.raises(httpx.ReadTimeout):
            await http.post("/settle", json=made, timeout=0.2)
        said = (await http.post("/settle", json=made)).json()
    assert (said["success"], settlements(chain)) == (True, 1)


async def test_I13_junk_that_looks_like_a_payment_never_reaches_the_chain(
    chain: EvmDevnet, front: Front, http: httpx.AsyncClient
) -> None:
    """What is wrong offline costs no call to the node and no row."""
    made = body(_signed(chain, to="0x" + secrets.token_hex(20)))
    before = chain.rpc("eth_blockNumber")
    answers = await asyncio.gather(*(http.post("/settle", content=json.dumps(made)) for _ in range(50)))
    assert {answer.json()["errorReason"] for answer in answers} == {_PREFIX + "recipient_mismatch"}
    assert (claims(front.store), chain.rpc("eth_blockNumber")) == ([], before)
