"""``node_of``: which adapter a URL names, and where its secret comes from; and the exact reading of what nodes say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from nostr_sdk import Keys

from x402kit import networks
from x402kit.errors import ConfigError, RailUnavailable
from x402kit.networks.lightning_nodes import LightningNode, node_of
from x402kit.networks.lightning_port import BITCOIN, REGTEST, SIGNET, TESTNET, InvoiceNode, PayingNode
from x402kit.networks.lightning_reading import digest, msat, named_network, reading, short, whole

SECRET = "5ec2e7" * 10
URI = f"nostr+walletconnect://{Keys.generate().public_key().to_hex()}?relay=ws://127.0.0.1:1&secret={'5a' * 32}"


@pytest.mark.parametrize(
    ("url", "secret", "kind"),
    [
        ("lnd+https://127.0.0.1:8080", SECRET, "Lnd"),
        ("cln+https://127.0.0.1:3010", SECRET, "CoreLightning"),
        ("phoenixd+http://127.0.0.1:9740", SECRET, "Phoenixd"),
        ("lnbits+https://lnbits.example.com", SECRET, "LNbits"),
        (URI, "", "NostrWalletConnect"),
        ("nostr+walletconnect://", URI, "NostrWalletConnect"),
    ],
)
@pytest.mark.parametrize("in_file", [False, True])
def test_a_url_names_the_product_and_the_secret_is_a_value_or_a_file(
    url: str, secret: str, kind: str, in_file: bool, tmp_path: Path
) -> None:
    if in_file and secret:
        file = tmp_path / "secret"
        file.write_text(secret + "\n")
        secret = str(file)
    node = node_of(url, secret)
    assert type(node) is getattr(networks, kind)
    assert isinstance(node, LightningNode)
    assert isinstance(node, PayingNode)
    made: InvoiceNode = node
    assert made.step in (1, 1000)
    assert made.network == ""
    assert SECRET not in repr(node)


def test_a_macaroon_is_read_from_lnds_own_file(tmp_path: Path) -> None:
    file = tmp_path / "invoice.macaroon"
    file.write_bytes(bytes.fromhex("0201036c6e64") + b"\xff" * 40)
    assert type(node_of("lnd+https://127.0.0.1:8080", str(file))) is networks.Lnd


@pytest.mark.parametrize(
    "url",
    ["", "https://127.0.0.1", "lnd", "lnd+", "lnd+ftp://127.0.0.1", "btcpay+https://127.0.0.1", "cln+https://"],
)
def test_I11_another_url_is_refused_and_no_secret_shown(url: str) -> None:
    with pytest.raises(ConfigError) as told:
        node_of(url, SECRET)
    assert SECRET not in str(told.value)


def test_a_secret_is_needed_and_its_file_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        node_of("cln+https://127.0.0.1:3010")
    for product in ("lnd+https", "cln+https", "phoenixd+http", "lnbits+https"):
        with pytest.raises(ConfigError):
            node_of(f"{product}://127.0.0.1:1", str(tmp_path / "missing"))
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError):
        node_of("cln+https://127.0.0.1:3010", str(tmp_path / "bytes"))
    with pytest.raises(ConfigError):
        node_of("nostr+walletconnect://", str(tmp_path / "missing"))
    with pytest.raises(ConfigError):
        node_of("cln+https://127.0.0.1:3010", SECRET, cert=str(tmp_path / "missing.pem"))


@pytest.mark.parametrize("value", [None, True, 1.0, -1, 2**63, "", "1 ", "1.0", "-1msat", "1sat", "٣", [], {}])
def test_only_whole_amounts_are_read(value: Any) -> None:
    with pytest.raises(ValueError, match=r"."):
        msat(value)
    with pytest.raises(ValueError, match=r"."):
        whole(value)


def test_amounts_are_numbers_or_older_nodes_text() -> None:
    assert (msat(0), msat(12), msat("12msat"), msat("12"), whole(2**63 - 1)) == (0, 12, 12, 12, 2**63 - 1)


@pytest.mark.parametrize("value", [None, 1, "", "5a" * 31, "5a" * 33, "5a" * 31 + "zz", "٣" * 64, "5a" * 32 + "\n"])
def test_only_hashes_are_read(value: Any) -> None:
    with pytest.raises(ValueError, match="not 32 bytes"):
        digest(value)
    assert digest("5A" * 32) == "5a" * 32


def test_networks_go_by_the_names_that_nodes_give_them() -> None:
    names = ("bitcoin", "mainnet", "testnet", "testnet3", "signet", "regtest")
    assert [named_network(name, "node") for name in names] == [BITCOIN, BITCOIN, TESTNET, TESTNET, SIGNET, REGTEST]
    for name in ("liquidv1", "", None, ["bitcoin"]):
        with pytest.raises(ConfigError):
            named_network(name, "node")


def test_a_memo_is_cut_between_letters() -> None:
    assert short("a call") == "a call"
    assert len(short("ж" * 1000).encode()) == 638
    assert short("aж", 2) == "a"
    assert short("a\ud800", 10) == "a?"


@pytest.mark.parametrize("error", [KeyError, TypeError, ValueError, AttributeError])
def test_what_can_not_be_read_is_a_node_that_is_unavailable(error: type[Exception]) -> None:
    with pytest.raises(RailUnavailable), reading():
        raise error(SECRET)
