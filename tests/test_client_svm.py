"""The payer on Solana, without a chain: what it signs and what it never signs, its wallets, its node, its journal."""

from __future__ import annotations

import asyncio
import base64
import json
import secrets
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import httpx
import pytest
from solders.keypair import Keypair
from solders.pubkey import Pubkey

from tests.support.clients import KEY
from tests.support.paid_server import entry
from tests.support.serving import serving
from tests.support.svm_payments import NETWORK, PAY_TO, USDC
from x402kit.client import Limits, NothingPayable, Payer, PayerError, PaymentInfo, PaymentOutcomeUnknown, TooDear
from x402kit.client import payment_of as info_of
from x402kit.errors import ConfigError, MissingExtra, PaymentRefused
from x402kit.model import Json, PaymentRequirements
from x402kit.money import Asset
from x402kit.networks import svm
from x402kit.networks.svm_transaction import (
    ASSOCIATED,
    MEMO,
    TOKEN,
    address_bytes,
    decode,
    find_transfer,
    token_account,
)
from x402kit.protocols import x402

FEES = Keypair.from_seed(b"one who pays the network's fees ")
WALLET = Keypair.from_seed(b"a payer with a wallet on Solana ")
OWN_TOKENS = token_account(bytes(WALLET.pubkey()), address_bytes(USDC.address), TOKEN)
BLOCKHASH = str(Pubkey.from_bytes(b"\x07" * 32))
HOST: Final = "https://api.example.com/goods"


def offer(*, extra: Json | None = None, **changes: Any) -> Json:
    named = {"feePayer": str(FEES.pubkey()), "recentBlockhash": BLOCKHASH, **(extra or {})}
    named = {key: value for key, value in named.items() if value is not None}
    return {
        "scheme": "exact",
        "network": NETWORK,
        "amount": "10000",
        "asset": USDC.address,
        "payTo": PAY_TO,
        "maxTimeoutSeconds": 60,
        "extra": named,
        **changes,
    }


def payer(**settings: Any) -> Payer:
    settings = {"svm_key": bytes(WALLET), "limits": Limits(per_call="$0.05"), "backoff": 0, **settings}
    return Payer(**settings)


def receipt(header: str, **changes: Any) -> str:
    """What an honest seller answers: its signature over the payment's message is the transaction's name."""
    message = sent(header).message
    signature = str(FEES.sign_message(message))
    made = {"success": True, "network": NETWORK, "transaction": signature, "payer": str(WALLET.pubkey()), **changes}
    return x402.encode_header(made)


class Seller:
    """Answers 402 with ``offers`` until it is paid, then what ``script`` says, call by call."""

    def __init__(self, *offers: Json) -> None:
        self.offers = list(offers) or [offer()]
        self.script: list[Callable[[str], httpx.Response]] = []
        self.paid: list[str] = []
        self.asked = 0

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.asked += 1
        shown = request.headers.get("payment-signature")
        if shown is None:
            return self.challenge()
        self.paid.append(shown)
        return self.script.pop(0)(shown) if self.script else good(shown)

    def challenge(self, error: str = "") -> httpx.Response:
        made = {"x402Version": 2, "accepts": self.offers, "error": error}
        return httpx.Response(402, headers={"payment-required": x402.encode_header(made)})

    def get(self, paying: Payer, url: str = HOST) -> httpx.Response:
        with httpx.Client(transport=paying.transport(httpx.MockTransport(self))) as client:
            return client.get(url)


def good(shown: str) -> httpx.Response:
    network = x402.decode_header(shown)["accepted"]["network"]
    headers = {"payment-response": receipt(shown)} if network == NETWORK else {}
    return httpx.Response(200, headers=headers)


def lost(shown: str) -> httpx.Response:
    raise httpx.ReadTimeout("no answer")


def sent(header: str) -> Any:
    return decode(base64.b64decode(x402.decode_header(header)["payload"]["transaction"]))


def checked(header: str, *, relaxed: bool = False, creates: bool = False, memo: str = "", fees: str = "") -> Any:
    """The payment under the very checks that a seller of ours makes. Raises ``PaymentRefused``."""
    payment = x402.parse_payment_payload(x402.decode_header(header))
    terms = PaymentRequirements("exact", NETWORK, 10_000, USDC.address, PAY_TO, 60, {})
    authorization = svm.parse(payment, terms, 0)
    fee_payer = address_bytes(fees or str(FEES.pubkey()))
    svm.check(authorization, terms, svm.Terms(USDC, TOKEN, fee_payer, relaxed, creates, memo))
    assert authorization.payer == str(WALLET.pubkey())
    return authorization


def networks(seller: Seller) -> list[str]:
    return [x402.decode_header(shown)["accepted"]["network"] for shown in seller.paid]


# What is signed


def test_it_signs_a_transfer_that_our_own_checks_take() -> None:
    seller = Seller()
    assert seller.get(payer()).status_code == 200
    authorization = checked(seller.paid[0])
    transaction = authorization.body.transaction
    assert [each.program for each in transaction.instructions][2:] == [TOKEN, MEMO]
    assert transaction.signatures[0] == bytes(64)
    assert transaction.blockhash == b"\x07" * 32
    memo = transaction.instructions[-1].data.decode()
    assert len(bytes.fromhex(memo)) == 16
    again = Seller()
    again.get(payer())
    assert checked(again.paid[0]).payment_id != authorization.payment_id


def test_a_memo_of_the_sellers_is_written_and_every_message_is_another() -> None:
    seller = Seller(offer(extra={"memo": "order 7, für dich"}))
    for _ in range(40):
        seller.get(payer())
    ids = {checked(shown, memo="order 7, für dich").payment_id for shown in seller.paid}
    assert len(ids) == len(seller.paid) == 40


def test_the_recipients_account_is_created_where_the_offer_says_so() -> None:
    seller = Seller(offer(extra={"createRecipientAccount": True}))
    seller.get(payer())
    made = checked(seller.paid[0], relaxed=True, creates=True).body.transaction
    assert [each.program for each in made.instructions].count(ASSOCIATED) == 1
    wallet = address_bytes(str(WALLET.pubkey()))
    assert [wallet in each.accounts for each in made.instructions] == [False, False, False, True, False]
    with pytest.raises(PaymentRefused):
        checked(seller.paid[0])


def test_M05_mint_decimals_and_program_are_our_own_tables() -> None:
    lies = {"decimals": 0, "name": "Dollar", "tokenProgram": PAY_TO, "amount": "1"}
    seller = Seller(offer(extra=lies))
    seller.get(payer())
    transfer = checked(seller.paid[0]).body.transfer
    assert (transfer.amount, transfer.decimals) == (10_000, 6)
    assert transfer.source == OWN_TOKENS


@pytest.mark.parametrize(
    "changes",
    [
        {"asset": str(Keypair().pubkey())},
        {"asset": USDC.address.lower()},
        {"asset": USDC.address.swapcase()},
        {"payTo": "0x" + "11" * 20},
        {"payTo": PAY_TO + "1"},
        {"scheme": "upto"},
        {"network": "solana:unknown"},
        {"amount": str(1 << 64)},
        {"extra": {}},
        {"extra": {"feePayer": "me"}},
        {"extra": {"feePayer": 7}},
        {"extra": {"feePayer": str(FEES.pubkey()), "memo": "m" * 257}},
        {"extra": {"feePayer": str(FEES.pubkey()), "memo": ["m"]}},
        {"extra": {"feePayer": str(FEES.pubkey()), "recentBlockhash": "0OIl"}},
        {"extra": {"feePayer": str(FEES.pubkey()), "recentBlockhash": 5}},
    ],
)
def test_M05_an_offer_that_is_not_whole_or_not_known_is_left_alone(changes: Json) -> None:
    seller = Seller({**offer(), **changes})
    paying = payer()
    assert seller.get(paying).status_code == 402
    assert (seller.asked, paying.payments()) == (1, [])


@pytest.mark.parametrize(
    "changes",
    [
        {"extra": {"feePayer": str(WALLET.pubkey())}},
        {
            "extra": {
                "feePayer": str(
                    Pubkey.from_bytes(token_account(bytes(WALLET.pubkey()), address_bytes(USDC.address), TOKEN))
                )
            }
        },
        {"extra": {"feePayer": USDC.address}},
    ],
)
def test_it_never_pays_the_networks_fees_nor_signs_for_anything_else(changes: Json) -> None:
    changes["extra"]["recentBlockhash"] = BLOCKHASH
    seller, paying = Seller({**offer(), **changes}), payer()
    if changes["extra"]["feePayer"] == str(WALLET.pubkey()):
        with pytest.raises(NothingPayable, match="own wallet"):
            seller.get(paying)
        assert (seller.paid, paying.payments()) == ([], [])
        return
    seller.get(paying)
    made = sent(seller.paid[0])
    wallet = bytes(WALLET.pubkey())
    assert [wallet in each.accounts for each in made.instructions] == [False, False, True, False]
    assert made.instructions[2].data == b"\x0c" + (10_000).to_bytes(8, "little") + b"\x06"


def test_an_asset_that_the_caller_knows_is_paid() -> None:
    mint = str(Keypair.from_seed(bytes(32)).pubkey())
    asset = Asset(NETWORK, mint, "EURX", 2, "", "")
    seller = Seller(offer(asset=mint, amount="120"))
    paying = payer(limits=Limits(per_call="$5", assets=[asset]))
    seller.get(paying)
    transfer = find_transfer(sent(seller.paid[0]).instructions)
    assert transfer is not None
    assert (transfer.mint, transfer.amount, transfer.decimals) == (address_bytes(mint), 120, 2)
    assert str(paying.spent_today()) == "$1.200000"


# Katana's dialect (wire.md 1.6 rows 5 and 11)


@pytest.mark.parametrize(
    ("url", "hosts"),
    [
        ("https://kat.imgnai.com/v1/x", []),
        (HOST, ["api.example.com"]),
        ("https://api.example.com:8443/x", ["API.example.com:8443"]),
    ],
)
def test_the_recipient_pays_the_fees_where_katanas_dialect_is_known(url: str, hosts: list[str]) -> None:
    seller = Seller(offer(extra={"feePayer": None}))
    seller.get(payer(katana_hosts=hosts), url)
    assert x402.decode_header(seller.paid[0])["payload"]["payer"] == str(WALLET.pubkey())
    assert bytes(sent(seller.paid[0]).keys[0]) == address_bytes(PAY_TO)
    checked(seller.paid[0], fees=PAY_TO, relaxed=True)


def test_elsewhere_an_offer_without_a_fee_payer_is_left_alone() -> None:
    seller = Seller(offer(extra={"feePayer": None}))
    assert seller.get(payer(katana_hosts=["other.example.com"])).status_code == 402
    assert seller.asked == 1


# Two wallets


def both(**settings: Any) -> Payer:
    return payer(evm_key=KEY, **settings)


def test_base_comes_first_and_limits_can_say_otherwise() -> None:
    assert both().addresses == ("0x70997970C51812dc3A010C7d01b50e0d17dc79C8", str(WALLET.pubkey()))
    for limits, wanted in (
        (["solana", "base"], NETWORK),
        (["base", "solana"], "eip155:8453"),
        (["solana"], NETWORK),
        (None, "eip155:8453"),
    ):
        seller = Seller(offer(), entry())
        seller.get(both(limits=Limits(per_call="$0.05", networks=limits)))
        assert networks(seller) == [wanted], limits


def test_the_other_network_is_taken_where_the_first_is_too_dear() -> None:
    seller = Seller(entry(amount="60000"), offer())
    seller.get(both())
    assert networks(seller) == [NETWORK]


def test_an_offer_that_needs_a_node_comes_last_where_there_is_none() -> None:
    seller = Seller(offer(extra={"recentBlockhash": None}), entry())
    seller.get(both(limits=Limits(per_call="$0.05", networks=["solana", "base"])))
    assert networks(seller) == ["eip155:8453"]
    with pytest.raises(NothingPayable, match="svm_rpc"):
        Seller(offer(extra={"recentBlockhash": None})).get(both())


def test_M04_both_wallets_spend_one_budget() -> None:
    paying = both(limits=Limits(per_call="$0.05", per_day="$0.025"))
    Seller(entry()).get(paying)
    Seller(offer()).get(paying)
    for seller in (Seller(entry()), Seller(offer())):
        with pytest.raises(TooDear, match="per_day"):
            seller.get(paying, HOST + "/more")
        assert seller.paid == []
    assert str(paying.spent_today()) == "$0.020000"


def test_M02_an_open_payment_on_one_network_is_shown_before_the_other_is_signed_for() -> None:
    paying = both(retries=0)
    on_solana = Seller(offer())
    on_solana.script = [lost]
    with pytest.raises(PaymentOutcomeUnknown):
        on_solana.get(paying)
    now_both = Seller(entry(), offer())
    now_both.get(paying)
    assert now_both.paid == on_solana.paid


def test_a_payer_without_a_wallet_there_leaves_the_offer_alone() -> None:
    assert Seller().get(Payer(KEY)).status_code == 402
    assert Seller(entry()).get(payer()).status_code == 402
    with pytest.raises(ConfigError, match="no wallet"):
        Payer(KEY, limits=Limits(networks=["solana"]))


# Keys


def test_a_key_may_be_spelled_in_every_usual_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "id.json"
    file.write_text(json.dumps(list(bytes(WALLET))))
    monkeypatch.setenv("HOME", str(tmp_path))
    ways: list[Json] = [
        {"svm_key": str(WALLET)},
        {"svm_key": bytes(WALLET)},
        {"svm_key": b"a payer with a wallet on Solana "},
        {"svm_key": json.dumps(list(bytes(WALLET)))},
        {"svm_keypair": str(file)},
        {"svm_keypair": file},
        {"svm_keypair": "~/id.json"},
        {"svm_signer": WALLET},
    ]
    for way in ways:
        paying = Payer(**way)
        assert paying.address == str(WALLET.pubkey())
        seller = Seller()
        seller.get(paying)
        checked(seller.paid[0])
        assert str(WALLET)[5:] not in repr(vars(paying))


@pytest.mark.parametrize(
    "settings",
    [
        {"svm_key": "0x" + "11" * 32},
        {"svm_key": b"short"},
        {"svm_key": bytes(WALLET)[:32] + bytes(FEES)[32:]},
        {"svm_keypair": "/nowhere/id.json"},
        {"svm_key": bytes(WALLET), "svm_signer": WALLET},
        {"svm_signer": object()},
    ],
)
def test_keys_that_are_none_are_refused_at_once(settings: Json) -> None:
    with pytest.raises(ConfigError) as caught:
        Payer(**settings)
    assert str(WALLET) not in str(caught.value)


class Liar:
    """Signs something else."""

    def pubkey(self) -> Pubkey:
        return WALLET.pubkey()

    def sign_message(self, message: bytes) -> Any:
        return WALLET.sign_message(message + b"!")


class Slow(Liar):
    async def sign_message(self, message: bytes) -> Any:
        return WALLET.sign_message(message)


@pytest.mark.parametrize(("signer", "error"), [(Liar(), PayerError), (Slow(), ConfigError)])
def test_a_foreign_signer_that_does_not_sign_is_found_out(signer: Any, error: type[Exception]) -> None:
    paying, seller = Payer(svm_signer=signer), Seller()
    with pytest.raises(error):
        seller.get(paying)
    assert (seller.paid, paying.payments(), str(paying.spent_today())) == ([], [], "$0.000000")


def test_without_solders_the_extra_is_named() -> None:
    code = (
        "import sys; sys.modules['solders'] = sys.modules['solders.keypair'] = None\n"
        "from x402kit.client import Payer\n"
        "try: Payer(svm_key=bytes(range(32)))\n"
        "except Exception as e: print(type(e).__name__, e)\n"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert ran.stdout.startswith(MissingExtra.__name__)
    assert "x402kit-asgi[svm]" in ran.stdout


def test_a_payer_without_a_solana_wallet_loads_nothing_of_it() -> None:
    code = (
        "import sys, x402kit.client as c; c.Payer(evm_key='0x' + '11' * 32)\n"
        "print(sorted(name for name in sys.modules if 'solders' in name or '.svm' in name))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert ran.stdout.strip() == "[]"


# The payer's own node


class Node:
    """A node that says a blockhash, or anything else."""

    def __init__(self, body: bytes = b"", status: int = 200) -> None:
        said = {"jsonrpc": "2.0", "id": 1, "result": {"context": {"slot": 1}, "value": {"blockhash": BLOCKHASH}}}
        self.body, self.status = body or json.dumps(said).encode(), status
        self.calls: list[bytes] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.calls.append((await receive())["body"])
        await send({"type": "http.response.start", "status": self.status, "headers": []})
        await send({"type": "http.response.body", "body": self.body})


BARE: Final = {"recentBlockhash": None}


def test_a_node_is_asked_once_and_only_where_the_offer_brings_no_blockhash() -> None:
    node = Node()
    with serving(node, lifespan=False) as url:
        paying = payer(svm_rpc=url)
        Seller().get(paying)
        assert node.calls == []
        seller = Seller(offer(extra=BARE))
        seller.get(paying)
        paying.close()
    assert [json.loads(each)["method"] for each in node.calls] == ["getLatestBlockhash"]
    assert sent(seller.paid[0]).blockhash == b"\x07" * 32


def test_a_node_is_asked_off_the_event_loop() -> None:
    async def main(url: str) -> int:
        paying, seller = payer(svm_rpc=url), Seller(offer(extra=BARE))
        transport = paying.async_transport(httpx.MockTransport(seller))
        async with httpx.AsyncClient(transport=transport) as client:
            answers = await asyncio.gather(*(client.get(f"{HOST}/{each}") for each in range(5)))
        return [answer.status_code for answer in answers].count(200)

    node = Node()
    with serving(node, lifespan=False) as url:
        assert asyncio.run(main(url)) == len(node.calls) == 5


@pytest.mark.parametrize(
    "node",
    [
        Node(b"<html>"),
        Node(b"[]"),
        Node(b'{"result": null}'),
        Node(b'{"result": {"value": {"blockhash": 7}}}'),
        Node(b'{"result": {"value": {"blockhash": "short"}}}'),
        Node(b'{"error": {"code": -32005, "message": "node is behind"}}'),
        Node(b" " * 70_000),
    ],
)
def test_I11_a_node_that_says_nothing_of_use_leads_to_no_signature(node: Node) -> None:
    with serving(node, lifespan=False) as url:
        paying, seller = payer(svm_rpc=url + "/?key=SECRET"), Seller(offer(extra=BARE))
        with pytest.raises(PayerError, match="nothing was signed") as caught:
            seller.get(paying)
    assert (seller.paid, paying.payments()) == ([], [])
    assert "SECRET" not in f"{caught.value!r} {caught.value.__cause__!r}"


def test_a_node_that_is_not_there_leads_to_no_signature() -> None:
    paying, seller = payer(svm_rpc="http://127.0.0.1:9/"), Seller(offer(extra=BARE))
    with pytest.raises(PayerError, match="ConnectError"):
        seller.get(paying)
    assert seller.paid == []


# The journal, and the receipt


def test_M02_a_lost_answer_shows_the_same_payment() -> None:
    seller, paying = Seller(), payer(retries=1)
    seller.script = [lost, lost]
    with pytest.raises(PaymentOutcomeUnknown):
        seller.get(paying)
    assert seller.get(paying).status_code == 200
    assert (len(seller.paid), len(set(seller.paid))) == (3, 1)
    assert [row.state for row in paying.payments()] == ["accepted"]


def test_M03_a_payment_is_written_down_before_it_is_sent_and_found_again(tmp_path: Path) -> None:
    journal = tmp_path / "payments.db"
    seller, before = Seller(), payer(journal=journal)

    def die(shown: str) -> httpx.Response:
        assert [row.value for row in before.payments(only_open=True)] == [shown]
        raise KeyboardInterrupt

    seller.script = [die]
    with pytest.raises(KeyboardInterrupt):
        seller.get(before)
    before.close()
    after = payer(journal=journal)
    assert seller.get(after).status_code == 200
    assert (len(seller.paid), len(set(seller.paid))) == (2, 1)
    (row,) = after.payments()
    assert row.reference == checked(seller.paid[0]).payment_id
    assert (row.network, row.payer, row.state) == (NETWORK, str(WALLET.pubkey()), "accepted")
    after.close()


def test_a_refused_payment_is_given_up_when_its_blockhash_can_be_no_good_any_more() -> None:
    now = [1_800_000_000.0]
    paying, seller = payer(clock=lambda: now[0]), Seller()

    def refuse(shown: str) -> httpx.Response:
        return seller.challenge("insufficient_funds")

    seller.script = [refuse, refuse]
    for _ in range(2):
        with pytest.raises(PayerError):
            seller.get(paying)
    assert len(set(seller.paid)) == 1
    assert paying.payments()[0].valid_before == now[0] + svm.VALID_SECONDS
    now[0] += svm.VALID_SECONDS + 600
    assert seller.get(paying).status_code == 200
    assert len(set(seller.paid)) == 2
    assert str(paying.spent_today()) == "$0.020000"  # that the first did not move is the seller's word


FORGED: Final[dict[str, tuple[Json, str]]] = {
    "another transaction": ({"transaction": str(FEES.sign_message(b"another"))}, "another transaction"),
    "the payer's own signature": ({"transaction": str(WALLET.sign_message(b"x"))}, "another transaction"),
    "an EVM hash": ({"transaction": "0x" + "11" * 32}, "no transaction"),
    "no transaction": ({"transaction": ""}, "another transaction"),
    "another payer": ({"payer": str(FEES.pubkey())}, "another payer"),
    "another case": ({"payer": str(WALLET.pubkey()).swapcase()}, "another payer"),
    "another amount": ({"amount": "1"}, "another amount"),
}


@pytest.mark.parametrize(("changes", "problem"), FORGED.values(), ids=FORGED.keys())
def test_M10_a_forged_receipt_is_found_out_without_asking_a_chain(changes: Json, problem: str) -> None:
    seller = Seller()
    seller.script = [lambda shown: httpx.Response(200, headers={"payment-response": receipt(shown, **changes)})]
    info = info_of(seller.get(payer()))
    assert isinstance(info, PaymentInfo)
    assert not info.verified
    assert problem in info.problem


def test_M10_an_honest_receipt_is_the_fee_payers_signature() -> None:
    seller = Seller()
    info = info_of(seller.get(payer()))
    assert isinstance(info, PaymentInfo)
    assert (info.verified, info.problem) == (True, "")


def test_it_signs_no_lookups_and_no_third_signer_whatever_is_offered() -> None:
    """Made-up extras, many of them: two signers, four instructions, and our account only in the transfer."""
    wallet = bytes(WALLET.pubkey())
    for _ in range(50):
        extra: Json = {secrets.token_hex(4): secrets.token_hex(8) for _ in range(8)}
        extra |= {"instructions": [PAY_TO], "addressLookupTables": [PAY_TO], "signers": [PAY_TO]}
        seller = Seller(offer(extra=extra))
        seller.get(payer())
        made = sent(seller.paid[0])
        assert (len(made.signatures), len(made.instructions), made.has_lookups) == (2, 4, False)
        assert sum(wallet in each.accounts for each in made.instructions) == 1
