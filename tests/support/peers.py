"""The programs in tests/peers, run as they are: in their own environments, talked to over HTTP and by JSON lines."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from x402kit.devnet import EvmAccount, SvmAccount
from x402kit.model import Json

__all__ = ["CLIENTS", "LOST", "PEERS", "UNHEARD", "Fault", "Front", "ask", "node_program", "pay", "service"]

ROOT = Path(__file__).parents[2]
PEERS = ROOT / "tests" / "peers"
PYTHON = ROOT / ".venv-peers" / "bin" / "python"
CLIENTS = ("client_httpx.py", "client_requests.py")
"""The x402 package's two clients."""


def _command(program: str) -> tuple[str, ...]:
    return node_program(program) if program.endswith(".mjs") else (str(PYTHON), str(PEERS / program))


def node_program(program: str) -> tuple[str, ...]:
    """How to run a program of JavaScript in tests/peers: by the machine's node, or by the one of ``make setup``."""
    node = shutil.which("node", path=f"{os.environ['PATH']}:{ROOT / '.venv' / 'bin'}")
    assert node is not None, "make setup brings node"
    return (node, str(PEERS / program))


def _environment(**values: str) -> dict[str, str]:
    return {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", **values}


def pay(
    program: str, url: str, payer: EvmAccount | SvmAccount, *options: str, method: str = "GET", body: Any = None
) -> Json:
    """One call by a peer's client, paid by ``payer`` where it is asked to; the line that it prints."""
    given = [*options, "--method", method]
    given += [] if body is None else ["--json", json.dumps(body)]
    key = payer.private_key if isinstance(payer, EvmAccount) else payer.secret_key
    return _printed([*_command(program), url, *given], _environment(PEER_KEY=key))


def ask(program: str, task: Json, **environment: str) -> Json:
    """One task for a program that reads it as JSON from standard input; the line that it prints."""
    return _printed(_command(program), _environment(**environment), json.dumps(task))


def _printed(command: Sequence[str], environment: dict[str, str], said: str | None = None) -> Json:
    ended = subprocess.run(
        command, input=said, env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert ended.returncode == 0, ended.stderr
    line: Json = json.loads(ended.stdout)
    return line


@contextlib.contextmanager
def service(program: str, options: Sequence[str], **environment: str) -> Generator[str]:
    """A peer's server or facilitator; its URL, until the block ends."""
    process = subprocess.Popen(
        [*_command(program), *options],
        env=_environment(**environment),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    try:
        said = process.stdout.readline()
        assert said, f"{program} did not start"
        url: str = json.loads(said)["url"]
        yield url
    finally:
        process.terminate()
        process.wait(15)
        process.stdout.close()


@dataclass(frozen=True)
class Fault:
    """What happens to one answer: it is lost, or ``status`` and ``body`` stand in for it.

    ``forward``: whether the server behind acts on the request before that.
    """

    forward: bool = True
    status: int | None = None
    body: bytes = b""


LOST = Fault()
UNHEARD = Fault(forward=False)


@dataclass
class Front:
    """A reverse proxy before the server at ``target``, and what goes wrong there.

    ``faults[path]`` is used up request by request, None standing for a request that goes through, as all others do.
    """

    target: str
    faults: dict[str, list[Fault | None]] = field(default_factory=dict[str, list[Fault | None]])
    seen: list[tuple[str, dict[str, str]]] = field(default_factory=list[tuple[str, dict[str, str]]])

    def count(self, path: str) -> int:
        """How many requests came for a path."""
        return [seen for seen, _ in self.seen].count(path)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        assert scope["type"] == "http"
        path: str = scope["path"]
        body = await Request(scope, receive).body()
        self.seen.append((path, {name.decode(): value.decode() for name, value in scope["headers"]}))
        waiting = self.faults.get(path, [])
        fault = waiting.pop(0) if waiting else None
        answer = None if fault is not None and not fault.forward else await self._forward(scope, body)
        if fault is None:
            assert answer is not None
            headers = [(k.lower(), v) for k, v in answer.headers.raw if k.lower() not in _HOP]
            await _reply(send, answer.status_code, headers, answer.content)
        elif fault.status is None:
            cycle: Any = send
            cycle.__self__.transport.abort()
        else:
            await _reply(send, fault.status, [(b"content-length", str(len(fault.body)).encode())], fault.body)

    async def _forward(self, scope: Scope, body: bytes) -> httpx.Response:
        headers = [(k, v) for k, v in scope["headers"] if k not in _HOP]
        url = self.target + scope["path"] + ("?" + scope["query_string"].decode() if scope["query_string"] else "")
        async with httpx.AsyncClient(timeout=60) as client:
            return await client.request(scope["method"], url, headers=[*headers, _PLAIN], content=body)


_PLAIN = (b"accept-encoding", b"identity")
_HOP = frozenset((b"host", b"connection", b"transfer-encoding", b"accept-encoding"))


async def _reply(send: Send, status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> None:
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
