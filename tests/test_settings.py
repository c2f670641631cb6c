"""The X402KIT_* environment: what it makes, and each way in which it can be wrong, told without showing a value."""

from __future__ import annotations

from pathlib import Path

import pytest

from x402kit.devnet import EvmDevnet
from x402kit.errors import ConfigError, WrongChain
from x402kit.ledger.postgres import PostgresStore
from x402kit.networks.lightning_port import BITCOIN, REGTEST
from x402kit.settings import Settings

PAY_TO = "0xf39Fd6e51aad88F6F4ce6aB8827279cffFb92266"
KEY = "0xac0974bec39a17e36ba4a6b4d238ff944bacb478cbed5efcae784d7bf4f2ff80"
EVM = {
    "X402KIT_EVM_RPC_URL": "http://127.0.0.1:8545",
    "X402KIT_EVM_PAY_TO": PAY_TO,
    "X402KIT_EVM_KEY": KEY,
}
DEVNET = {"X402KIT_ENV": "devnet", **EVM}
LIGHTNING = {
    "X402KIT_ENV": "devnet",
    "X402KIT_LIGHTNING_URL": "lnd+http://127.0.0.1:8080",
    "X402KIT_LIGHTNING_KEY": "0201036c6e64",
    "X402KIT_LIGHTNING_BTC_USD": "97000",
}
MAINNET = {
    **EVM,
    "X402KIT_ENV": "mainnet",
    "X402KIT_SERVICE": "example-api",
    "X402KIT_ORIGIN": "https://api.example.com",
    "X402KIT_EVM_RPC_URL": "https://node.example.com/v1?token=abc",
}


def read(**changes: str) -> Settings:
    return Settings.from_env({**DEVNET, **{f"X402KIT_{name}": value for name, value in changes.items()}})


def test_the_variables_make_a_paywall(tmp_path: Path) -> None:
    settings = read(LEDGER=str(tmp_path / "p.db"), ORIGIN="http://127.0.0.1:8000", SECRET="x" * 16, SERVICE="shop")
    (rail,) = settings.rails()
    assert (rail.network, rail.pay_to, rail.asset.symbol) == ("eip155:8453", PAY_TO, "USDC")
    assert settings.paywall().origin == "http://127.0.0.1:8000"
    assert settings.service == "shop"
    assert not (tmp_path / "p.db").exists()


def test_what_is_not_set_has_its_default() -> None:
    settings = read()
    assert (settings.ledger, settings.origin, settings.service, settings.secret) == ("payments.db", "", "x402kit", None)
    assert read(ORIGIN="", SECRET=" ").secret is None
    assert Settings.from_env({"PATH": "/bin"}).env == "testnet"


def test_payments_may_have_a_field_of_their_own() -> None:
    assert read().payment_header == "Authorization"
    read(PAYMENT_HEADER="Payment-Authorization").paywall()
    with pytest.raises(ConfigError, match=r"X402KIT_PAYMENT_HEADER: .*Payment-Authorization"):
        read(PAYMENT_HEADER="X-Key")


def test_it_reads_the_process_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in DEVNET.items():
        monkeypatch.setenv(name, value)
    assert Settings.from_env() == Settings.from_env(DEVNET)


def test_L07_each_environment_has_its_network() -> None:
    testnet = Settings.from_env({**EVM, "X402KIT_EVM_RPC_URL": "https://node.example.com"})
    assert testnet.rails()[0].network == "eip155:84532"
    assert Settings.from_env(MAINNET).rails()[0].network == "eip155:8453"


@pytest.mark.parametrize(
    ("environ", "names"),
    [
        ({**DEVNET, "X402KIT_ENV": "production"}, "^X402KIT_ENV: [^;]*$"),
        ({**DEVNET, "X402KIT_ENV": "prod", "X402KIT_SVM_KEY": "x"}, "^X402KIT_ENV: [^;]*; X402KIT_SVM_(?!.*NETWORK)"),
        ({**DEVNET, "X402KIT_SECRET": "abc"}, "^X402KIT_SECRET: it has 16 characters or more$"),
        (
            {**DEVNET, "X402KIT_SECRET": "x" * 16, "X402KIT_SECRET_BEFORE": "abc"},
            "^X402KIT_SECRET_BEFORE: it has 16 characters or more$",
        ),
        ({**DEVNET, "X402KIT_EVM_KEY": "0xabc"}, "^X402KIT_EVM_KEY: .*64 hex digits"),
        (
            {
                "X402KIT_SVM_RPC_URL": "https://node.example.com",
                "X402KIT_SVM_PAY_TO": "So11111111111111111111111111111111111111112",
                "X402KIT_SVM_KEY": "abc",
            },
            "^X402KIT_SVM_KEY: key is no Solana key",
        ),
        ({**DEVNET, "X402KIT_EVM_RPC_URL": "https://node.example.com"}, "X402KIT_EVM_RPC_URL: .*this machine"),
        ({**DEVNET, "X402KIT_EVM_RPC_URL": "ipc:///x"}, "X402KIT_EVM_RPC_URL"),
        ({**DEVNET, "X402KIT_EVM_PAY_TO": "0x12"}, "X402KIT_EVM_PAY_TO: it is not written as"),
        ({**DEVNET, "X402KIT_EVM_NETWORK": "base"}, "X402KIT_EVM_NETWORK"),
        ({**DEVNET, "X402KIT_EVM_PAYTO": PAY_TO}, "X402KIT_EVM_PAYTO: there is no such variable"),
        ({**DEVNET, "X402KIT_LEDGER": "mysql://db/x"}, "X402KIT_LEDGER"),
        ({**DEVNET, "X402KIT_SVM_KEY": "x"}, "X402KIT_SVM"),
        ({**EVM, "X402KIT_EVM_NETWORK": "eip155:8453"}, "X402KIT_EVM_NETWORK: eip155:8453 .*testnet"),
        ({**MAINNET, "X402KIT_SERVICE": ""}, "X402KIT_SERVICE: mainnet needs a name of your own"),
        ({**MAINNET, "X402KIT_EVM_NETWORK": "eip155:84532"}, "X402KIT_EVM_NETWORK: eip155:84532 .*mainnet"),
        ({**MAINNET, "X402KIT_ORIGIN": ""}, "X402KIT_ORIGIN"),
        ({**MAINNET, "X402KIT_ORIGIN": "http://api.example.com"}, "X402KIT_ORIGIN"),
        ({"X402KIT_ENV": "devnet", "X402KIT_EVM_KEY": KEY}, "X402KIT_EVM_RPC_URL: it is missing; X402KIT_EVM_PAY_TO"),
    ],
)
def test_a_fault_names_its_variable(environ: dict[str, str], names: str) -> None:
    with pytest.raises(ConfigError, match=names) as raised:
        Settings.from_env(environ)
    assert "abc" not in str(raised.value)
    assert KEY[2:] not in str(raised.value)


def test_lightning_alone_and_beside_a_chain() -> None:
    (alone,) = Settings.from_env(LIGHTNING).rails()
    assert (alone.network, alone.asset.symbol) == (REGTEST, "BTC")
    fed = {**DEVNET, **LIGHTNING, "X402KIT_LIGHTNING_BTC_USD": "", "X402KIT_LIGHTNING_FEED": PAY_TO}
    assert [rail.network for rail in Settings.from_env(fed).rails()] == ["eip155:8453", REGTEST]
    live = {**MAINNET, **LIGHTNING, "X402KIT_ENV": "mainnet", "X402KIT_LIGHTNING_URL": "lnd+https://node.example.com"}
    assert Settings.from_env(live).rails()[-1].network == BITCOIN


@pytest.mark.parametrize(
    ("environ", "names"),
    [
        ({"X402KIT_LIGHTNING_BTC_USD": ""}, "X402KIT_LIGHTNING_BTC_USD: Lightning needs the price of a bitcoin"),
        ({"X402KIT_LIGHTNING_BTC_USD": "", "X402KIT_LIGHTNING_FEED": PAY_TO}, "X402KIT_LIGHTNING_BTC_USD: Lightning"),
        ({"X402KIT_LIGHTNING_BTC_USD": "97,000"}, "X402KIT_LIGHTNING_BTC_USD: it is not written as"),
        ({"X402KIT_LIGHTNING_URL": "lnd+https://10.1.1.1"}, "X402KIT_LIGHTNING_URL: .*this machine"),
        ({"X402KIT_LIGHTNING_URL": "http://127.0.0.1"}, "X402KIT_LIGHTNING_URL: it is not written as"),
        ({"X402KIT_LIGHTNING_MACAROON": "ab"}, "X402KIT_LIGHTNING_MACAROON: there is no such variable"),
        ({"X402KIT_LIGHTNING_NETWORK": BITCOIN}, "X402KIT_LIGHTNING_URL: .*regtest"),
        ({"X402KIT_ENV": "", "X402KIT_LIGHTNING_NETWORK": BITCOIN}, "X402KIT_LIGHTNING_NETWORK: .*testnet"),
        ({**MAINNET, "X402KIT_LIGHTNING_NETWORK": REGTEST}, "X402KIT_LIGHTNING_NETWORK: .*mainnet"),
        ({"X402KIT_LIGHTNING_KEY": ""}, "the lnd node needs its secret"),
    ],
)
def test_L07_a_fault_of_lightnings_variables(environ: dict[str, str], names: str) -> None:
    with pytest.raises(ConfigError, match=names) as raised:
        Settings.from_env({**LIGHTNING, **environ}).rails()
    assert LIGHTNING["X402KIT_LIGHTNING_KEY"] not in str(raised.value)


def test_the_ledger_may_be_postgresql() -> None:
    settings = read(LEDGER="postgresql://seller:sesame@127.0.0.1/books")
    assert isinstance(settings.paywall().store, PostgresStore)
    assert "sesame" not in repr(settings)


@pytest.mark.parametrize("address", ["postgresql://seller:sesame@[", "postgresql://h/d?sesame", "mysql://a:sesame@b/c"])
def test_I11_a_wrong_ledger_is_not_shown(address: str) -> None:
    with pytest.raises(ConfigError) as raised:
        read(LEDGER=address).paywall()
    assert "sesame" not in str(raised.value)
    assert raised.value.__cause__ is None
    assert raised.value.__suppress_context__


@pytest.mark.parametrize("key", ["0x12", KEY[:-1] + "g", "0x" + "0" * 64])
def test_I11_a_wrong_key_is_not_shown(key: str) -> None:
    with pytest.raises(ConfigError) as raised:
        read(EVM_KEY=key).paywall()
    assert key not in str(raised.value)
    assert KEY not in repr(read())
    assert "token" not in repr(Settings.from_env(MAINNET))


def test_without_any_rail_the_variables_are_named() -> None:
    with pytest.raises(ConfigError, match="X402KIT_EVM_RPC_URL"):
        Settings.from_env({"X402KIT_ENV": "devnet"}).paywall()


async def test_a_node_of_another_chain_names_the_variable_that_was_forgotten(chain: EvmDevnet, tmp_path: Path) -> None:
    environ = {**EVM, "X402KIT_EVM_RPC_URL": chain.rpc_url, "X402KIT_LEDGER": str(tmp_path / "p.db")}
    paywall = Settings.from_env(environ).paywall()
    with pytest.raises(WrongChain, match=r"the rail on eip155:84532; .*X402KIT_ENV=testnet .*X402KIT_…_NETWORK"):
        await paywall.start()
