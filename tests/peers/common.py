"""What the peer programs share: how a client reports, and how a service starts and says where it listens."""

from __future__ import annotations

import argparse
import json
import os
import socket
from collections.abc import Mapping
from typing import Any

import uvicorn
from fastapi import FastAPI
from x402.http.utils import decode_payment_response_header

BASE = "eip155:8453"


def private_key() -> str:
    """The key that signs, from the environment so that no process list shows it."""
    return os.environ["PEER_KEY"]


def is_solana(network: str) -> bool:
    return network.startswith("solana:")


class ClientArguments(argparse.Namespace):
    url: str
    method: str
    json: str | None
    header: list[str]
    timeout: float
    svm_rpc: str | None

    @property
    def headers(self) -> dict[str, str]:
        given = dict(pair.split(":", 1) for pair in self.header)
        return given if self.json is None else {"content-type": "application/json", **given}


def client_arguments() -> ClientArguments:
    parser = argparse.ArgumentParser()
    parser.add_argument("url")
    parser.add_argument("--method", default="GET")
    parser.add_argument("--json", help="a JSON text to send as the body")
    parser.add_argument("--header", action="append", default=[], metavar="NAME:VALUE")
    parser.add_argument("--timeout", type=float, default=30.0, metavar="SECONDS")
    parser.add_argument("--svm-rpc", metavar="URL", help="pay on Solana, with a key in base58, by this node")
    return parser.parse_args(namespace=ClientArguments())


def report_answer(status: int, headers: Mapping[str, str], text: str) -> None:
    """Print what came back, the receipt decoded by the peer's own reader."""
    names = {name.lower(): value for name, value in headers.items()}
    line: dict[str, Any] = {"status": status, "headers": names, "body": parsed(text), "payment_response": None}
    if receipt := names.get("payment-response") or names.get("x-payment-response"):
        try:
            decoded = decode_payment_response_header(receipt)
        except ValueError as error:
            line["payment_response_error"] = str(error)
        else:
            line["payment_response"] = decoded.model_dump(by_alias=True, exclude_none=True)
    emit(line)


def report_error(error: Exception) -> None:
    """Print that the client raised instead of answering."""
    emit({"status": None, "error": type(error).__name__, "message": str(error)})


def emit(line: dict[str, Any]) -> None:
    print(json.dumps(line), flush=True)


def parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


class _Announcing(uvicorn.Server):
    """A server that prints its address once it takes connections."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=sockets)
        if self.started and sockets:
            emit({"url": f"http://127.0.0.1:{sockets[0].getsockname()[1]}"})


def serve(app: FastAPI, port: int) -> None:
    """Run on loopback until SIGTERM; port 0 takes a free one."""
    # Said to be TCP, or asyncio leaves Nagle's algorithm on: 40 ms a call.
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", port))
    _Announcing(uvicorn.Config(app, log_level="warning")).run(sockets=[listener])
