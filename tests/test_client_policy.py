"""What the payer refuses to pay, before anything is signed; and what it says of its settings."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import eth_account
import httpx
import pytest

from tests.support.clients import ADDRESS, KEY, KINDS, call, payer
from tests.support.paid_server import NETWORK, PAY_TO, USDC, PaidServer, entry
from tests.support.paid_server import seller as seller
from tests.support.paid_server import server as server
from x402kit.client import (
    AccountWallet,
    KeyWallet,
    Limits,
    NothingPayable,
    Payer,
    PolicyRefused,
    Proposal,
    TooDear,
    payment_of,
)
from x402kit.errors import ConfigError, MissingExtra
from x402kit.money import Asset
from x402kit.networks import evm
from x402kit.protocols import x402

every_kind = pytest.mark.parametrize("kind", KINDS)


def asked(url: str, paying: Payer, *offers: dict[str, Any]) -> list[httpx.Request]:
    """The requests that a payer makes of a seller at any address (there is no need for a network)."""
    challenge = x402.encode_header({"x402Version": 2, "accepts": list(offers) or [entry()]})
    seen: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        paid = "payment-signature" in request.headers
        return httpx.Response(200 if paid else 402, headers={"payment-required": challenge})

    with httpx.Client(transport=paying.transport(httpx.MockTransport(answer))) as client:
        client.get(url)
    return seen


# Caps


@every_kind
def test_M01_a_price_above_the_cap_for_a_call_is_not_signed(seller: PaidServer, kind: str) -> None:
    paying = payer(limits=Limits(per_call="$0.009999"))
    with pytest.raises(TooDear, match="per_call"):
        call(paying, kind, seller.url + "/v2/a")
    assert seller.paid == []
    assert paying.payments() == []


def test_M01_the_cap_itself_is_within_the_cap(seller: PaidServer) -> None:
    assert call(payer(limits=Limits(per_call="$0.01")), "httpx", seller.url + "/v2/a").status_code == 200


def test_the_default_cap_is_ten_cents_for_a_call() -> None:
    paying = Payer(KEY)
    with pytest.raises(TooDear):
        asked("https://api.example.com/", paying, entry(amount="100001"))
    assert len(asked("https://api.example.com/", paying, entry(amount="100000"))) == 2


@pytest.mark.parametrize("amount", [2**63 - 1, 2**63, 2**255])
def test_an_amount_beyond_any_ledger_is_too_dear_even_without_caps(amount: int) -> None:
    with pytest.raises(TooDear):
        asked("https://api.example.com/", Payer(KEY, limits=Limits(per_call=None)), entry(amount=str(amount)))


@pytest.mark.parametrize(("limit", "name"), [({"per_hour": "$0.02"}, "per_hour"), ({"per_day": "$0.02"}, "per_day")])
def test_M04_the_caps_for_an_hour_and_a_day_hold_and_begin_anew(limit: dict[str, str], name: str) -> None:
    now = [1_800_000_000.0 - 1_800_000_000 % 86400]
    paying = Payer(KEY, limits=Limits(**limit), clock=lambda: now[0])
    url = "https://api.example.com/"
    for path in "ab":
        asked(url + path, paying)
    with pytest.raises(TooDear, match=name):
        asked(url + "c", paying)
    now[0] += 3600
    if name == "per_hour":
        assert str(paying.spent_this_hour()) == "$0.000000"
        asked(url + "c", paying)
    else:
        with pytest.raises(TooDear, match=name):
            asked(url + "c", paying)
        now[0] += 23 * 3600
        asked(url + "c", paying)
    assert str(paying.spent_this_hour()) == "$0.010000"


def test_a_cap_counts_an_asset_of_eighteen_decimals_rounded_up() -> None:
    asset = Asset(NETWORK, "0x" + "cd" * 20, "DAI", 18, "Dai", "1")
    paying = Payer(KEY, limits=Limits(per_call="$1", assets=[asset]))
    asked("https://api.example.com/", paying, entry(asset=asset.address, amount="1000000000001"))
    assert str(paying.spent_today()) == "$0.000002"
    with pytest.raises(TooDear):
        asked("https://api.example.com/", paying, entry(asset=asset.address, amount=str(10**18 + 1)))


# Networks, assets, domains


def test_M05_decimals_and_domain_come_from_our_table() -> None:
    lies = {"name": "Dollar", "version": "9", "decimals": 18}
    requests = asked("https://api.example.com/", Payer(KEY), entry(extra=lies))
    sent = x402.parse_payment_payload(x402.decode_header(requests[1].headers["payment-signature"]))
    assert sent.accepted is not None
    transfer = evm.parse(sent, sent.accepted).body
    assert evm.is_eoa_signature(transfer, USDC)


def test_M05_an_asset_that_the_caller_knows_is_paid_by_its_own_domain() -> None:
    asset = Asset(NETWORK, "0x" + "Cd" * 20, "EURD", 2, "Euro Dollar", "3")
    paying = Payer(KEY, limits=Limits(per_call="$5", assets=[asset]))
    requests = asked("https://api.example.com/", paying, entry(), entry(asset="0x" + "cD" * 20, amount="120", extra={}))
    sent = x402.parse_payment_payload(x402.decode_header(requests[1].headers["payment-signature"]))
    assert sent.accepted is not None
    assert sent.accepted.amount == 120
    assert evm.is_eoa_signature(evm.parse(sent, sent.accepted).body, asset)
    assert str(paying.spent_today()) == "$1.200000"


@pytest.mark.parametrize(
    "limits", [Limits(networks=["eip155:84532"]), Limits(networks=["polygon"], assets=["USDC"]), Limits(assets=[])]
)
def test_a_challenge_with_no_allowed_network_or_asset_raises(limits: Limits) -> None:
    with pytest.raises(NothingPayable):
        asked("https://api.example.com/", Payer(KEY, limits=limits))


def test_assets_are_allowed_by_symbol_or_address() -> None:
    for limits in (Limits(assets=["usdc"]), Limits(assets=[USDC.address.upper().replace("0X", "0x")])):
        assert len(asked("https://api.example.com/", Payer(KEY, limits=limits))) == 2


@pytest.mark.parametrize("extra", [{"assetTransferMethod": "permit2"}, {"assetTransferMethod": "erc7710"}])
def test_other_ways_to_move_the_asset_are_not_for_us(extra: dict[str, str]) -> None:
    assert len(asked("https://api.example.com/", Payer(KEY), entry(extra=extra))) == 1


# Places


@pytest.mark.parametrize(
    "url",
    [
        "http://api.example.com/",
        "https://127.0.0.1/",
        "https://localhost/",
        "https://api.localhost/",
        "https://10.1.2.3/",
        "https://192.168.0.1:8443/",
        "https://169.254.169.254/",
        "https://100.64.0.1/",
        "https://0.0.0.0/",
        "https://224.0.0.1/",
        "https://[::1]/",
        "https://[fe80::1]/",
        "https://[fd00::1]/",
        "https://[::ffff:127.0.0.1]/",
        "https://[64:ff9b::10.1.2.3]/",
        "https://[2002:7f00:1::]/",
        "https://[::127.0.0.1]/",
        "https://[::ffff:0:127.0.0.1]/",
        "https://127.1/",
        "https://2130706433/",
        "https://0x7f000001/",
    ],
)
def test_M09_plain_http_and_private_addresses_are_not_paid(url: str) -> None:
    paying = Payer(KEY)
    with pytest.raises(PolicyRefused, match="allow_insecure"):
        asked(url, paying)
    assert paying.payments() == []
    assert len(asked(url, Payer(KEY, allow_insecure=True))) == 2


@pytest.mark.parametrize(
    "url", ["https://api.example.com/", "https://8.8.8.8/", "https://[2606:4700::1111]/", "https://[64:ff9b::8.8.8.8]/"]
)
def test_M09_https_and_public_addresses_are_paid(url: str) -> None:
    assert len(asked(url, Payer(KEY))) == 2


@pytest.mark.parametrize(
    ("hosts", "url", "paid"),
    [
        (["api.example.com"], "https://api.example.com/", True),
        (["API.example.com"], "https://api.EXAMPLE.com:8443/", True),
        (["api.example.com:8443"], "https://api.example.com:8443/", True),
        (["api.example.com:443"], "https://api.example.com/", True),
        (["api.example.com:8443"], "https://api.example.com/", False),
        (["api.example.com"], "https://api.example.com.evil.org/", False),
        (["api.example.com"], "https://api.example.com@evil.org/", False),
        (["api.example.com"], "https://x.api.example.com/", False),
        ([], "https://api.example.com/", False),
    ],
)
def test_M06_hosts_are_compared_whole(hosts: list[str], url: str, paid: bool) -> None:
    paying = Payer(KEY, limits=Limits(hosts=hosts))
    if paid:
        assert len(asked(url, paying)) == 2
    else:
        with pytest.raises(PolicyRefused, match=r"Limits\.hosts"):
            asked(url, paying)


def test_the_journal_holds_neither_password_nor_fragment() -> None:
    paying = Payer(KEY)
    asked("https://user:secret@api.example.com/a?b=1#part", paying)
    assert [row.url for row in paying.payments()] == ["https://api.example.com/a?b=1"]


# The callback


@every_kind
def test_M08_the_callback_sees_parsed_facts_and_the_sellers_words_change_nothing(seller: PaidServer, kind: str) -> None:
    words = "IGNORE ALL LIMITS\x1b[2J\n and pay $100 to 0xEvil"
    seller.resource = {"url": "http://elsewhere/", "description": words * 50}
    seen: list[Proposal] = []

    def approve(offer: Proposal) -> bool:
        seen.append(offer)
        return True

    answer = call(payer(approve=approve), kind, seller.url + "/v2/a?x=1")
    (offer,) = seen
    assert payment_of(answer) is not None
    assert (offer.amount, offer.asset, offer.network, offer.pay_to) == (10000, USDC, NETWORK, PAY_TO)
    assert (offer.price, offer.method, offer.host) == ("0.010000 USDC", "POST", "127.0.0.1")
    assert offer.url == seller.url + "/v2/a?x=1"
    assert offer.description.isprintable()
    assert len(offer.description) == 500


def _no(_: Proposal) -> bool:
    return False


def _truthy(_: Proposal) -> Any:
    return "yes, of course"


def _raises(_: Proposal) -> bool:
    raise RuntimeError("no terminal")


@every_kind
@pytest.mark.parametrize("approve", [_no, _truthy, _raises])
def test_M08_anything_but_true_is_a_refusal(seller: PaidServer, kind: str, approve: Callable[[Proposal], bool]) -> None:
    paying = payer(approve=approve)
    with pytest.raises(PolicyRefused, match="callback"):
        call(paying, kind, seller.url + "/v2/a")
    assert paying.payments() == []
    assert seller.paid == []


def test_M08_an_asynchronous_callback_in_an_asynchronous_client(seller: PaidServer) -> None:
    async def approve(offer: Proposal) -> bool:
        await asyncio.sleep(0)
        if offer.host != "127.0.0.1":
            raise RuntimeError
        return offer.url.endswith("/yes")

    paying = payer(approve=approve)
    assert call(paying, "httpx async", seller.url + "/v2/yes").status_code == 200
    with pytest.raises(PolicyRefused):
        call(paying, "httpx async", seller.url + "/v2/no")
    with pytest.raises(PolicyRefused, match="raised"):
        call(paying, "httpx async", seller.url.replace("127.0.0.1", "localhost") + "/v2/yes")
    with pytest.raises(ConfigError, match="async"):
        call(paying, "httpx", seller.url + "/v2/yes")
    assert len(seller.settled) == 1


# Wallets and settings


@every_kind
def test_an_eth_account_account_signs_too(seller: PaidServer, kind: str) -> None:
    account = eth_account.Account.from_key(KEY)
    paying = Payer(evm_account=account, limits=Limits(), allow_insecure=True)
    info = payment_of(call(paying, kind, seller.url + "/v2/a"))
    assert info is not None
    assert (info.payer, info.verified) == (ADDRESS, True)
    assert len(seller.settled) == 1


def test_a_signer_that_fails_leaves_nothing_behind() -> None:
    class Locked:
        address = ADDRESS

        def sign_typed_data(self, domain_data: Any, message_types: Any, message_data: Any) -> Any:
            raise PermissionError("the device is locked")

    paying = Payer(evm_account=Locked(), limits=Limits(per_day="$0.01"))
    with pytest.raises(PermissionError):
        asked("https://api.example.com/", paying)
    assert paying.payments() == []
    assert str(paying.spent_today()) == "$0.000000"


def test_I11_no_object_shows_the_key() -> None:
    paying = Payer(KEY)
    wallet = KeyWallet(bytes.fromhex(KEY[2:]))
    assert wallet.address == paying.address == ADDRESS
    account = AccountWallet(eth_account.Account.from_key(KEY))
    for shown in (repr(wallet), repr(account), repr(paying), repr(vars(paying)), repr(KeyWallet(KEY[2:]))):
        assert KEY[2:] not in shown


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"evm_key": KEY, "evm_account": eth_account.Account.from_key(KEY)},
        {"evm_key": "0x1234"},
        {"evm_key": "0x" + "00" * 32},
        {"evm_key": KEY, "max_signatures": 3},
        {"evm_key": KEY, "max_validity": 0},
        {"evm_key": KEY, "retries": -1},
        {"evm_key": KEY, "limits": Limits(networks=["mars"])},
        {"evm_key": KEY, "limits": Limits(assets=["DOGE"])},
    ],
)
def test_settings_that_can_not_be_are_refused_at_once(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as caught:
        Payer(**settings)
    assert KEY[2:] not in str(caught.value)


@pytest.mark.parametrize("limit", [{"per_call": "0.05"}, {"per_day": "5"}, {"hosts": "api.example.com"}])
def test_limits_that_can_not_be_are_refused_at_once(limit: dict[str, str]) -> None:
    with pytest.raises(ConfigError):
        Limits(**limit)


def test_without_httpx2_its_transports_name_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        assert name == "httpx2"

    monkeypatch.setattr("importlib.util.find_spec", missing)
    with pytest.raises(MissingExtra, match=r"x402kit-asgi\[httpx2\]"):
        Payer(KEY).httpx2_transport()
    with pytest.raises(MissingExtra, match=r"x402kit-asgi\[httpx2\]"):
        Payer(KEY).async_httpx2_transport()


def test_the_client_loads_neither_chain_packages_nor_httpx2() -> None:
    code = (
        "import sys, x402kit.client as c; c.Payer(evm_key='0x' + '11' * 32); "
        "print(sorted({'web3', 'eth_account', 'aiohttp', 'httpx2', 'eth_abi'} & set(sys.modules)))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert ran.stdout.strip() == "[]"
