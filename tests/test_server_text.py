"""The words of simulated replies."""

from __future__ import annotations

import json

import pytest

from loadgen.server.text import (
    EOS_TEXT,
    TOKEN_JSON,
    WORD_JSON,
    WORDS,
    stopped_at,
    token_fields,
    word_numbers,
)


def test_words_are_128_different_ones_that_begin_with_a_space() -> None:
    assert len(set(WORDS)) == len(WORDS) == 128
    assert all(word[0] == " " and word[1:].isalpha() for word in WORDS)


@pytest.mark.parametrize("request_id", [0, 1, -5, 10**9, 2**40])
def test_a_reply_uses_every_word_before_it_repeats(request_id: int) -> None:
    numbers = word_numbers(request_id, 256)
    assert sorted(numbers[:128]) == list(range(128))
    assert numbers[128:] == numbers[:128]
    assert word_numbers(request_id, 10) == numbers[:10]


def test_neighbouring_requests_read_differently() -> None:
    assert len({tuple(word_numbers(i, 6)) for i in range(1000)}) > 950


def test_encoded_words_decode_to_themselves() -> None:
    assert [json.loads(b'"' + word + b'"') for word in WORD_JSON] == list(WORDS)
    assert [json.loads(token) for token in TOKEN_JSON] == [token_fields(i) for i in range(128)]
    assert token_fields(None)["special"] is True
    assert token_fields(None)["text"] == EOS_TEXT


def test_a_stop_sequence_counts_only_at_the_end_of_a_token() -> None:
    numbers = word_numbers(3, 20)
    text = "".join(WORDS[n] for n in numbers[:7])
    assert stopped_at(numbers, [text]) == 7
    assert stopped_at(numbers, ["no such words", text[-4:]]) is not None
    assert stopped_at(numbers, [text + " "]) is None
    assert stopped_at(numbers, []) is None
