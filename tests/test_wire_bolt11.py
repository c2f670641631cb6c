"""Lightning invoices: the published examples, every field that is read, and nothing but ``ValueError`` for the rest."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from x402kit.networks.lightning_port import BITCOIN, REGTEST, SIGNET, TESTNET
from x402kit.protocols.bolt11 import INVOICE_MAX, Bolt11, decode

LETTERS = "qpzry9x8gf2tvdw0s3jn54khce6mua7l"
HASH = "0001020304050607080900010203040506070809000102030405060708090102"
LIST_HASH = "3925b6f67e2c340036ed12093dd44e0368df1b6ea26c53dbe4811f58fd5db8c1"
PAID = "pp5qqqsyqcyq5rqwzqfqqqsyqcyq5rqwzqfqqqsyqcyq5rqwzqfqypq"
HASHED = "hp58yjmdan79s6qqdhdzgynm4zwqd5d7xmw5fk98klysy043l2ahrqs"
MADE_AT = 1496314658

# The examples of BOLT 11; the parts that most of them share have names.
DONATION = (
    f"lnbc1pvjluez{PAID}dpl2pkx2ctnv5sxxmmwwd5kgetjypeh2ursdae8g6twvus8g6rfwvs8qun0dfjkxaq8rkx3yf5tcsyz3d73gafnh3cax9rn4"
    "49d9p5uxz9ezhhypd0elx87sjle52x86fux2ypatgddc6k63n7erqz25le42c4u4ecky03ylcqca784w"
)
COFFEE = (
    f"lnbc2500u1pvjluez{PAID}dq5xysxxatsyp3k7enxv4jsxqzpuaztrnwngzn3kdzw5hydlzf03qdgm2hdq27cqv3agm2awhz5se903vruatfhq77w"
    "3ls4evs3ch9zw97j25emudupq63nyw24cg27h2rspfj9srp"
)
NONSENSE = (
    f"lnbc2500u1pvjluez{PAID}dpquwpc4curk03c9wlrswe78q4eyqc7d8d0xqzpuyk0sg5g70me25alkluzd2x62aysf2pyy8edtjeevuv4p2d5p76r"
    "4zkmneet7uvyakky2zr4cusd45tftc9c5fh0nnqpnl2jfll544esqchsrny"
)
ENTIRE_LIST = (
    f"lnbc20m1pvjluez{PAID}{HASHED}cc6gd6ql3jrc5yzme8v4ntcewwz5cnw92tz0pc8qcuufvq7khhr8wpald05e92xw006sq94mg8v2ndf4sefvf9"
    "sygkshp5zfem29trqq2yxxz7"
)
TESTNET_FALLBACK = (
    f"lntb20m1pvjluez{HASHED}{PAID}fpp3x9et2e20v6pu37c5d9vax37wxq72un98kmzzhznpurw9sgl2v0nklu2g4d0keph5t7tj9tcqd8rexnd07u"
    "x4uv2cjvcqwaxgj7v4uwn5wmypjd5n69z2xm3xgksg28nwht7f6zspwp3f9t"
)
ROUTED = (
    f"lnbc20m1pvjluez{PAID}{HASHED}fpp3qjmp7lwpagxun9pygexvgpjdc4jdj85fr9yq20q82gphp2nflc7jtzrcazrra7wwgzxqc8u7754cdlpfrm"
    "ccae92qgzqvzq2ps8pqqqqqqpqqqqq9qqqvpeuqafqxu92d8lr6fvg0r5gv0heeeqgcrqlnm6jhphu9y00rrhy4grqszsvpcgpy9qqqqqqgqqqqq7qq"
    "zqj9n4evl6mr5aj9f58zp6fyjzup6ywn3x6sk8akg5v4tgn2q8g4fhx05wf6juaxu9760yp46454gpg5mtzgerlzezqcqvjnhjh8z3g2qqdhhwkj"
)
PICO = (
    "lnbc9678785340p1pwmna7lpp5gc3xfm08u9qy06djf8dfflhugl6p7lgza6dsjxq454gxhj9t7a0sd8dgfkx7cmtwd68yetpd5s9xar0wfjn5gpc8q"
    "hrsdfq24f5ggrxdaezqsnvda3kkum5wfjkzmfqf3jkgem9wgsyuctwdus9xgrcyqcjcgpzgfskx6eqf9hzqnteypzxz7fzypfhg6trddjhygrcyqezc"
    "gpzfysywmm5ypxxjemgw3hxjmn8yptk7untd9hxwg3q2d6xjcmtv4ezq7pqxgsxzmnyyqcjqmt0wfjjq6t5v4khxxqyjw5qcqp2rzjq0gxwkzc8w63"
    "23m55m4jyxcjwmy7stt9hwkwe2qxmy8zpsgg7jcuwz87fcqqeuqqqyqqqqlgqqqqn3qq9qn07ytgrxxzad9hc4xt3mawjjt8znfv8xzscs7007v9gh9"
    "j569lencxa8xeujzkxs0uamak9aln6ez02uunw6rd2ht2sqe4hz8thcdagpleym0j"
)
SECRET = "dq5vdhkven9v5sxyetpdeessp5zyg3zyg3zyg3zyg3zyg3zyg3zyg3zyg3zyg3zyg3zyg3zyg3zygs9q5sqqqqqqqqqqqqqqqpqsq"
BEANS = (
    f"lnbc25m1pvjluez{PAID}{SECRET}67gye39hfg3zd8rgc80k32tvy9xk2xunwm5lzexnvpx6fd77en8qaq424dxgt56cag2dpt359k3ssyhetktkp"
    "qh24jqnjyw6uqd08sgptq44qu"
)
IGNORED = (
    f"lnbc25m1pvjluez{PAID}{SECRET}2qrqqqfppn{'q' * 32}ppn{'q' * 51}pp4{'q' * 53}hpn{'q' * 51}hp4{'q' * 53}"
    f"spn{'q' * 51}sp4{'q' * 53}np5{'q' * 52}npk{'q' * 54}2jxxfsnucm4jf4zwtznpaxphce606fvhvje5x7d4gw7n73994hgs7nteqven"
    "q8a4ml8aqtchv5d9pf7l558889hp4yyrqv6a7zpq9fgpskqhza"
)
BOUGHT = (
    'Blockstream Store: 88.85 USD for Blockstream Ledger Nano S x 1, "Back In My Day" Sticker x 2, "I Got Lightning '
    'Working" Sticker x 2 and 1 more items'
)


@pytest.mark.parametrize(
    ("text", "made"),
    [
        (
            DONATION,
            Bolt11(BITCOIN, 0, HASH, MADE_AT, MADE_AT + 3600, "Please consider supporting this project", "", ""),
        ),
        (COFFEE, Bolt11(BITCOIN, 250_000_000, HASH, MADE_AT, MADE_AT + 60, "1 cup coffee", "", "")),
        (NONSENSE, Bolt11(BITCOIN, 250_000_000, HASH, MADE_AT, MADE_AT + 60, "ナンセンス 1杯", "", "")),
        (ENTIRE_LIST, Bolt11(BITCOIN, 2_000_000_000, HASH, MADE_AT, MADE_AT + 3600, "", LIST_HASH, "")),
        (TESTNET_FALLBACK, Bolt11(TESTNET, 2_000_000_000, HASH, MADE_AT, MADE_AT + 3600, "", LIST_HASH, "")),
        (ROUTED, Bolt11(BITCOIN, 2_000_000_000, HASH, MADE_AT, MADE_AT + 3600, "", LIST_HASH, "")),
        (
            PICO,
            Bolt11(
                BITCOIN,
                967_878_534,
                "462264ede7e14047e9b249da94fefc47f41f7d02ee9b091815a5506bc8abf75f",
                1572468703,
                1572468703 + 604_800,
                BOUGHT,
                "",
                "",
            ),
        ),
        (BEANS, Bolt11(BITCOIN, 2_500_000_000, HASH, MADE_AT, MADE_AT + 3600, "coffee beans", "", "")),
        (IGNORED, Bolt11(BITCOIN, 2_500_000_000, HASH, MADE_AT, MADE_AT + 3600, "coffee beans", "", "")),
    ],
)
def test_the_published_examples_are_read(text: str, made: Bolt11) -> None:
    for spelled in (text, text.upper(), "lightning:" + text, "LIGHTNING:" + text.upper()):
        assert decode(spelled) == made


@pytest.mark.parametrize(
    "text",
    [
        NONSENSE[:-1] + "t",  # the checksum
        NONSENSE[9:],  # no 1
        "LNBC2500u1" + NONSENSE[10:],  # mixed case
        f"lnbc1pvjluez{PAID}dpl2pkx2ctnv5sxxmmwwd5kgetjypeh2ursdae8g6na6hlh",  # too short
        (
            f"lnbc2500x1pvjluez{PAID}dq5xysxxatsyp3k7enxv4jsxqzpujr6jxr9gq9pv6g46y7d20jfkegkg4gljz2ea2a3m9lmvvr95tq2s0kv"
            "u70u3axgelz3kyvtp2ywwt0y8hkx2869zq5dll9nelr83zzqqpgl2zg"  # no such multiplier
        ),
        (
            f"lnbc2500000001p1pvjluez{PAID}dq5xysxxatsyp3k7enxv4jsxqzpu7hqtk93pkf7sw55rdv4k9z2vj050rxdr6za9ekfs3nlt5lr89"
            "jqpdmxsmlj9urqumg0h9wzpqecw7th56tdms40p2ny9q4ddvjsedzcplva53s"  # a tenth of a millisatoshi
        ),
        "",
        "1",
        "lnbc1",
        "lnbc1" + "q" * (INVOICE_MAX + 1),
        COFFEE + " ",
        COFFEE.replace("q", "b", 1),
        COFFEE.replace("lnbc", "lnbc\u0131"),
        "lightning://" + COFFEE,
    ],
)
def test_the_published_faults_are_refused(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  # each has words of its own
        decode(text)


def _checksum(head: str, words: Sequence[int]) -> list[int]:
    """BIP 173, by its definition: long division of a polynomial over GF(32), bit by bit."""
    made = 1
    for value in [*(ord(c) >> 5 for c in head), 0, *(ord(c) & 31 for c in head), *words, 0, 0, 0, 0, 0, 0]:
        top, made = made >> 25, (made & 0x1FFFFFF) << 5 ^ value
        for bit, part in enumerate((0x3B6A57B2, 0x26508E6D, 0x1EA119FA, 0x3D4233DD, 0x2A1462B3)):
            made ^= part if top >> bit & 1 else 0
    return [(made ^ 1) >> 5 * (5 - place) & 31 for place in range(6)]


def _number(value: int, size: int) -> list[int]:
    return [value >> 5 * (size - 1 - place) & 31 for place in range(size)]


def _words(data: bytes) -> list[int]:
    size = -(-len(data) * 8 // 5)
    return _number(int.from_bytes(data, "big") << (5 * size - 8 * len(data)), size)


def _field(letter: str, words: list[int]) -> list[int]:
    return [LETTERS.index(letter), *_number(len(words), 2), *words]


def invoice(*fields: list[int], head: str = "lnbcrt210n", timestamp: int = MADE_AT, signature: int = 104) -> str:
    """An invoice of any fields, with a checksum that is right."""
    words = [*_number(timestamp, 7), *(word for made in fields for word in made), *[0] * signature]
    return f"{head}1" + "".join(LETTERS[word] for word in [*words, *_checksum(head, words)])


PAYMENT = _field("p", _words(bytes.fromhex(HASH)))


@pytest.mark.parametrize(
    ("head", "network", "amount"),
    [
        ("lnbcrt", REGTEST, 0),
        ("lntbs", SIGNET, 0),
        ("lntb", TESTNET, 0),
        ("lnbc", BITCOIN, 0),
        ("lnbcrt21", REGTEST, 21 * 10**11),
        ("lntbs1", SIGNET, 10**11),
        ("lnbcrt1m", REGTEST, 10**8),
        ("lnbcrt1u", REGTEST, 10**5),
        ("lnbcrt1n", REGTEST, 100),
        ("lnbcrt10p", REGTEST, 1),
        ("lnbcrt210n", REGTEST, 21_000),
        ("lnbc21000000", BITCOIN, 21 * 10**17),
    ],
)
def test_an_amount_is_exact_in_every_unit_of_every_network(head: str, network: str, amount: int) -> None:
    assert decode(invoice(PAYMENT, head=head))[:2] == (network, amount)


@pytest.mark.parametrize(
    "head",
    [
        "lnbcrt1p",
        "lnbcrt19p",
        "lnbcrt0n",
        "lnbcrt01n",
        "lnbcrt-1n",
        "lnbcrt1.5n",
        "lnbcrt1_0n",
        "lnbcrt1k",
        "lnbcrtn",
        "lnbc21000001",
        "lnbc9999999999999999",
        "lnltc1n",
        "lnsb1n",
        "bc1n",
        "ln",
        "",
    ],
)
def test_A13_an_amount_that_is_not_exact_is_refused(head: str) -> None:
    with pytest.raises(ValueError, match=r"msat|invoice"):
        decode(invoice(PAYMENT, head=head))


def test_fields_are_read_and_unknown_ones_passed_over() -> None:
    payee = "03" + "e7" * 32
    made = decode(
        invoice(
            _field("9", [0] * 40),
            PAYMENT,
            _field("x", [1, 28]),
            _field("d", []),
            _field("q", [31]),
            _field("n", _words(bytes.fromhex(payee))),
            _field("h", _words(bytes.fromhex(LIST_HASH))),
            _field("s", _words(bytes(32))),
        )
    )
    assert made == Bolt11(REGTEST, 21_000, HASH, MADE_AT, MADE_AT + 60, "", LIST_HASH, payee)
    assert decode(invoice(PAYMENT)).expires_at == MADE_AT + 3600
    assert decode(invoice(PAYMENT, _field("x", []))).expires_at == MADE_AT
    assert decode(invoice(PAYMENT, timestamp=2**35 - 1)).timestamp == 2**35 - 1


@pytest.mark.parametrize(
    "fields",
    [
        [],
        [_field("p", [0] * 51)],
        [PAYMENT, PAYMENT],
        [PAYMENT, _field("p", _words(bytes(32)))],
        [PAYMENT, _field("d", []), _field("d", [])],
        [PAYMENT, _field("x", [1]), _field("x", [1])],
        [PAYMENT, _field("x", [1] * 13)],
        [PAYMENT, _field("d", _words(b"\xff"))],
        [PAYMENT, _field("d", [0, 1])],  # bits that are left over
        [_field("p", [0] * 51 + [1])],
        [PAYMENT, [1]],
        [PAYMENT, [1, 0]],
        [PAYMENT, [5, 31, 31, 0]],
    ],
)
def test_an_invoice_with_a_fault_is_refused(fields: list[list[int]]) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  # each has words of its own
        decode(invoice(*fields))


def test_an_invoice_without_its_signature_is_refused() -> None:
    for size in (0, 50, 103):
        with pytest.raises(ValueError):  # noqa: PT011  # its fields lose as many letters
            decode(invoice(PAYMENT, signature=size))


@given(st.sampled_from([DONATION, COFFEE, PICO, IGNORED]), st.data())
def test_one_wrong_letter_is_seen(text: str, data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(text) - 1))
    letter = data.draw(st.sampled_from(LETTERS + "1bio").filter(lambda letter: letter != text[at]))
    with pytest.raises(ValueError):  # noqa: PT011  # each has words of its own
        decode(text[:at] + letter + text[at + 1 :])


@given(
    st.sampled_from(["lnbc", "lntb", "lntbs", "lnbcrt"]),
    st.integers(0, 10**9),
    st.binary(min_size=32, max_size=32),
    st.text(max_size=60),
    st.integers(0, 2**40),
)
def test_any_invoice_is_read_as_it_was_made(head: str, sat: int, paid: bytes, description: str, expiry: int) -> None:
    text = description.encode("utf-8", "replace")
    amount = f"{sat * 10}n" if sat else ""
    made = decode(
        invoice(
            _field("d", _words(text)), _field("x", _number(expiry, 9)), _field("p", _words(paid)), head=head + amount
        )
    )
    assert made.amount == sat * 1000
    assert (made.payment_hash, made.description) == (paid.hex(), text.decode())
    assert made.expires_at == MADE_AT + expiry


def test_K03_the_largest_invoice_is_answered_at_once() -> None:
    longest = invoice(PAYMENT, *[_field("q", [])] * 1300)
    assert len(longest) < INVOICE_MAX

    def seconds(text: str) -> float:
        started = time.process_time()
        with contextlib.suppress(ValueError):
            decode(text)
        return time.process_time() - started

    for text in (longest, "1" * INVOICE_MAX, "lnbc1" + "q" * (INVOICE_MAX - 5), "lnbc" + "9" * (INVOICE_MAX - 4)):
        assert min(seconds(text) for _ in range(5)) < 0.02
