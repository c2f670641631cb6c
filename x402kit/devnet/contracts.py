"""Calldata, and runtime code for contracts that only have to answer: the little that a local chain needs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..networks.evm import keccak

__all__ = ["answering_code", "encode", "selector"]

Argument = int | str | bytes | Sequence[str]


def selector(signature: str) -> bytes:
    """The four bytes that name a function, e.g. ``"balanceOf(address)"``."""
    return keccak(signature.encode())[:4]


def encode(signature: str, *arguments: Argument) -> str:
    """A call's data in hex. Knows address, bool, uintN, bytes32, string, bytes and address[].

    Raises ValueError when the arguments do not fit the signature.
    """
    types = [t for t in signature[signature.index("(") + 1 : -1].split(",") if t]
    return "0x" + (selector(signature) + encode_arguments(types, arguments)).hex()


def encode_arguments(types: Sequence[str], arguments: Sequence[Argument]) -> bytes:
    """Arguments after the ABI's rule: a word each, dynamic ones by their offset, their content behind."""
    head, tail = b"", b""
    for kind, argument in zip(types, arguments, strict=True):
        if kind in ("string", "bytes", "address[]"):
            head += _word(32 * len(types) + len(tail))
            tail += _dynamic(argument)
        else:
            head += _static(kind, argument)
    return head + tail


def _word(value: int) -> bytes:
    return value.to_bytes(32, "big")


def _static(kind: str, argument: Argument) -> bytes:
    match argument:
        case int():
            return _word(argument)
        case str() if kind == "address":
            return bytes.fromhex(argument.removeprefix("0x")).rjust(32, b"\0")
        case bytes() if len(argument) == 32:
            return argument
        case _:
            raise ValueError(f"{argument!r} is no {kind}")


def _dynamic(argument: Argument) -> bytes:
    match argument:
        case int():
            raise ValueError(f"{argument!r} has no length")
        case str() | bytes():
            raw = argument.encode() if isinstance(argument, str) else argument
            return _word(len(raw)) + raw + bytes(-len(raw) % 32)
        case _:
            return _word(len(argument)) + b"".join(_static("address", item) for item in argument)


def answering_code(answers: Mapping[str, Sequence[int]]) -> str:
    """Runtime code, in hex, of a contract that answers each function with fixed words and reverts on any other.

    ``{"decimals()": [8]}`` gives the following; a word may be negative (two's complement)::

        5f35 60e0 1c            PUSH0 CALLDATALOAD PUSH1 e0 SHR     the selector
        80 63 313ce567 14       DUP1 PUSH4 … EQ                     is it decimals()?
        61 0014 57              PUSH2 … JUMPI
        5f 5f fd                PUSH0 PUSH0 REVERT                  nothing of ours
        5b                      JUMPDEST
        7f 00…08 61 0000 52     PUSH32 … PUSH2 0 MSTORE             one for each word
        61 0020 5f f3           PUSH2 32 PUSH0 RETURN
    """
    prologue, refusal = bytes.fromhex("5f3560e01c"), bytes.fromhex("5f5ffd")
    bodies = [_answer(words) for words in answers.values()]
    start = len(prologue) + 11 * len(bodies) + len(refusal)
    dispatch = b""
    for signature, body in zip(answers, bodies, strict=True):
        dispatch += b"\x80\x63" + selector(signature) + b"\x14\x61" + start.to_bytes(2, "big") + b"\x57"
        start += len(body)
    return "0x" + (prologue + dispatch + refusal + b"".join(bodies)).hex()


def _answer(words: Sequence[int]) -> bytes:
    code = b"\x5b"
    for index, word in enumerate(words):
        code += b"\x7f" + _word(word % 2**256) + b"\x61" + (32 * index).to_bytes(2, "big") + b"\x52"
    return code + b"\x61" + (32 * len(words)).to_bytes(2, "big") + b"\x5f\xf3"
