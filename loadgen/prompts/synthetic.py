"""Seeded multi-turn chats that end in "Thank you!", with the lengths of real ones.

The length law is the quantile function of the thank-you set (10,000 ShareGPT
conversations, cl100k tokens over all contents), linear between its 5 % steps:
200-4,000 tokens, mean about 1,200, standard deviation about 780. Text is composed
from sentences of our own, so it can be published, and each chat's first sentence
is its own, so that no prefix cache can serve one from another.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np

from loadgen.prompts.tokens import PIECE, PIECE_TOKENS
from loadgen.types import Request

LENGTH_QUANTILES_TOKENS = (
    200, 267, 328, 392, 456, 533, 617, 710, 813, 949, 1086,
    1235, 1368, 1491, 1601, 1711, 1820, 1936, 2080, 2492, 3990,
)  # fmt: skip
THANKS = "Thank you!"
_EXCHANGE_TOKENS = 300.0  # a question and its answer: 8 messages on average, as in the real set

_TOPICS = (
    "the garden pump", "a bread recipe", "my tax form", "the night train", "an old camera",
    "our school play", "a leaking roof", "the town museum", "a spreadsheet", "my running plan",
    "the choir concert", "a bike repair", "the rental contract", "a science project",
    "the neighbours' hedge", "a job interview", "the solar panels", "a birthday party", "the river walk",
    "a photo album", "my piano practice", "the office move", "a chess opening", "the compost heap",
    "a short story", "the water bill", "a weather station", "the library card", "my sore knee",
    "a paper boat",
)  # fmt: skip
_SUBJECTS = (
    "the first step", "a simple list", "the usual advice", "your second idea", "a careful estimate",
    "the smaller part", "most of the cost", "the next person", "a good example", "the older version",
    "every measurement", "the plain answer", "a short break", "the harder choice", "one more look",
    "the local shop",
)  # fmt: skip
_VERBS = (
    "depends on", "comes before", "takes longer than", "is easier with", "should follow", "often replaces",
    "works better after", "can be checked against", "has little to do with", "explains", "costs less than",
    "is worth more than",
)  # fmt: skip
_OBJECTS = (
    "the season and the light", "what you have at home", "a quiet afternoon", "the numbers from last year",
    "the order of the parts", "an honest conversation", "two or three trials", "the size of the room",
    "a written plan", "the instructions in the box", "patience and warm hands", "somebody who has done it",
    "the price of good material", "a second opinion",
)  # fmt: skip
_ENDINGS = (
    ".", ", at least at first.", ", and that is fine.", "; keep a note of it.", ", unless it rains.",
    ", so start there.", ", in my experience.", ". Write it down.", ", which surprises many people.",
)  # fmt: skip
_QUESTIONS = (
    "Could you tell me how to begin with {}?", "What would you do about {}?",
    "I am not sure about {}; any advice?", "How long does it take to sort out {}?",
    "Is there a cheaper way to handle {}?", "Can you explain why {} matters so much?",
)  # fmt: skip


def _pieces(text: str) -> int:
    return len(PIECE.findall(text))


def _cut(text: str, pieces: int) -> str:
    """The first pieces of a text."""
    return text[: list(PIECE.finditer(text))[:pieces][-1].end()]


def _bank(templates: Iterator[str]) -> tuple[list[str], np.ndarray[tuple[int], np.dtype[np.int64]]]:
    sentences = list(templates)
    return sentences, np.array([_pieces(" " + sentence) for sentence in sentences], dtype=np.int64)


class SyntheticSource:
    """Endless thank-you chats. ``max_new_tokens`` caps replies, whose length is the server's to decide."""

    def __init__(self, *, max_new_tokens: int = 256) -> None:
        self.max_new_tokens = max_new_tokens
        answers = (f"{s[0].upper()}{s[1:]} {v} {o}{e}"
                   for s, v, o, e in itertools.product(_SUBJECTS, _VERBS, _OBJECTS, _ENDINGS))  # fmt: skip
        self._answers, self._answer_pieces = _bank(answers)
        self._questions = [q.format(t) for q, t in itertools.product(_QUESTIONS, _TOPICS)]
        self._thanks_pieces = _pieces(THANKS)

    def requests(self, rng: np.random.Generator) -> Iterator[Request]:
        """Requests 0, 1, ...; request k is the same however many are taken."""
        levels = np.linspace(0, 1, len(LENGTH_QUANTILES_TOKENS))
        for id in itertools.count():
            # Whole sentences can fall short by half of one; the shortest chat should not.
            target_tokens = max(float(np.interp(rng.random(), levels, LENGTH_QUANTILES_TOKENS)), 210.0)
            messages, pieces = self.chat(rng, id, target_tokens)
            body = {
                "messages": messages,
                "max_new_tokens": self.max_new_tokens,
                "prompt_tokens": round(PIECE_TOKENS * pieces),
                "source_id": f"synthetic-{id}",
            }
            yield Request(id, "text", body)

    def chat(
        self, rng: np.random.Generator, id: int, target_tokens: float
    ) -> tuple[list[dict[str, str]], int]:
        """One chat of about that many tokens (contents only), and its pieces (see `tokens`)."""
        left = target_tokens / PIECE_TOKENS - self._thanks_pieces
        topic = _TOPICS[int(rng.integers(len(_TOPICS)))]
        opening = f"Case {id}-{int(rng.integers(10**6)):06d}: I have a question about {topic}."
        exchanges = max(1, round(target_tokens / _EXCHANGE_TOKENS))
        messages: list[dict[str, str]] = []
        total = self._thanks_pieces
        for remaining in range(exchanges, 0, -1):
            share = left / remaining * (rng.uniform(0.6, 1.4) if remaining > 1 else 1.0)
            question = [self._questions[int(rng.integers(len(self._questions)))]]
            if not messages:
                question.insert(0, opening)
            user = " ".join(question)
            used = _pieces(user)
            answer, pieces = self._some(rng, self._answers, self._answer_pieces, share - used)
            messages.append({"role": "user", "content": user})
            messages.append({"role": "assistant", "content": " ".join(answer)})
            left -= used + pieces
            total += used + pieces
        messages.append({"role": "user", "content": THANKS})
        return messages, total

    def text(self, rng: np.random.Generator, id: int, pieces: int) -> str:
        """Plain text of exactly that many pieces (see `tokens`), with a beginning of its own."""
        opening = f"Case {id}-{int(rng.integers(10**6)):06d}:"
        left = pieces - _pieces(opening)
        if left <= 0:
            return _cut(opening, pieces)
        drawn = rng.integers(len(self._answers), size=left // int(self._answer_pieces.min()) + 1)
        reached = np.cumsum(self._answer_pieces[drawn])
        whole = int(np.searchsorted(reached, left))
        sentences = [self._answers[i] for i in drawn[: whole + 1].tolist()]
        last = _cut(" " + sentences.pop(), left - (int(reached[whole - 1]) if whole else 0))
        return " ".join([opening, *sentences]) + last

    @staticmethod
    def _some(
        rng: np.random.Generator,
        sentences: list[str],
        counts: np.ndarray[tuple[int], np.dtype[np.int64]],
        pieces: float,
    ) -> tuple[list[str], int]:
        """Random sentences, at least one, whose pieces come nearest to the wanted number."""
        drawn = rng.integers(len(sentences), size=int(max(pieces, 0) / counts.min()) + 2)
        reached = np.cumsum(counts[drawn])
        take = int(np.argmin(np.abs(reached - pieces))) + 1
        return [sentences[i] for i in drawn[:take].tolist()], int(reached[take - 1])
