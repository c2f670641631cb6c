"""The demo's calls: the weather, a chat, a streamed chat. Each is made as any httpx program makes it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Protocol

import httpx

from ..model import Json
from .output import bold, dim, plain

__all__ = ["Calls", "Way"]


class Way(Protocol):
    """A way of paying: what is shown of a call's money when its answer begins, and when all of it has come."""

    def begin(self, answer: httpx.Response) -> None:
        """Raises ``ValueError`` where the answer is not a paid one."""
        ...

    def end(self, answer: httpx.Response, usage: Json | None) -> None:
        """``usage`` is what the answer states."""
        ...


class Calls:
    """Calls with numbers, by ``client``. What fails in them is for who asked for them to handle.

    ``before`` is called before each.
    """

    client: httpx.Client

    def __init__(self, before: Callable[[], None]) -> None:
        self._before = before
        self._count = 0

    def title(self, what: str, why: str) -> None:
        self._before()
        self._count += 1
        print(f"\n{bold(f'{self._count}  {what}')}  {dim(why)}")

    def weather(self, way: Way, why: str) -> None:
        self.title("GET /v1/weather", why)
        answer = self.client.get("/v1/weather", params={"city": "Lisbon"})
        way.begin(answer)
        print(f"   {answer.status_code}    {plain(answer.text)}")
        way.end(answer, None)

    def chat(self, way: Way, why: str) -> None:
        self.title("POST /v1/chat/completions", why)
        answer = self.client.post("/v1/chat/completions", json=_question("What is HTTP status 402 for?", 24))
        way.begin(answer)
        made = answer.json()
        print(f"   {answer.status_code}    {plain(made['choices'][0]['message']['content'])}")
        print(dim(f"          {_counted(made['usage'])}"))
        way.end(answer, made["usage"])

    def streamed_chat(self, way: Way, why: str) -> None:
        body = {**_question("And streamed?", 32), "stream": True, "stream_options": {"include_usage": True}}
        self.title("POST /v1/chat/completions", why)
        usage: Json | None = None
        with self.client.stream("POST", "/v1/chat/completions", json=body) as answer:
            way.begin(answer)
            print(f"   {answer.status_code}    ", end="")
            for event in _events(answer):
                usage = event.get("usage") or usage
                for choice in event["choices"]:
                    print(plain(choice["delta"].get("content", "")), end="", flush=True)
        print()
        if usage is None:
            raise ValueError("the stream ended without its usage")
        print(dim(f"          {_counted(usage)}"))
        way.end(answer, usage)


def _question(text: str, most: int) -> Json:
    return {"model": "demo", "messages": [{"role": "user", "content": text}], "max_tokens": most}


def _counted(usage: Json) -> str:
    return f"{usage['prompt_tokens']} tokens read, {usage['completion_tokens']} written"


def _events(answer: httpx.Response) -> Iterator[Json]:
    for line in answer.iter_lines():
        if line.startswith("data: ") and line != "data: [DONE]":
            yield json.loads(line[6:])
