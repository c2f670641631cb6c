"""A stand-in for a language model and for an image model: no weights, no network, and an honest count of tokens."""

from __future__ import annotations

import asyncio
import html
import re
from collections.abc import AsyncIterator, Sequence
from typing import Final

__all__ = ["draw", "generate", "tokens"]

_TOKEN: Final = re.compile(r"\s?\w{1,8}|\s?[^\w\s]|\s")
_TOKEN_SECONDS: Final = 0.002
_ANSWER: Final = (
    "You asked: {question}. I am a stand-in for a language model. I know nothing, but I count every token that I read "
    "and every token that I write, and I stop where you tell me to. What you read here was paid for in USDC: by a "
    "transfer that you can look up on the chain, or from your balance. The receipt came with this answer."
)


def tokens(text: str) -> list[str]:
    """The tokens of a text: up to eight letters, or one sign, with the space before it. Joined, they are the text."""
    return _TOKEN.findall(text)


async def generate(messages: Sequence[str], max_tokens: int) -> AsyncIterator[str]:
    """The answer to the last message, token by token: the same question always has the same answer."""
    question = " ".join(messages[-1].split()[:20]).rstrip(".?!")
    for token in tokens(_ANSWER.format(question=question))[:max_tokens]:
        await asyncio.sleep(_TOKEN_SECONDS)
        yield token


def draw(prompt: str) -> str:
    """An SVG image with the prompt written on it. ``ValueError`` for a prompt without a word."""
    if not any(char.isalnum() for char in prompt):
        raise ValueError("there is no word in the prompt to draw")
    text = html.escape(prompt[:60])
    frame = '<rect width="512" height="512" fill="#123"/><text x="24" y="256" font-size="20" fill="#fff">'
    return f'<svg xmlns="http://www.w3.org/2000/svg" width="512" height="512">{frame}{text}</text></svg>'
