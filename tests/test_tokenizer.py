"""The embedded server's tokenizer: counts, places, ids, and what a common prefix has in common."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from loadgen.prompts.tokens import count_tokens
from loadgen.server.text import EOS_TEXT, WORDS, token_fields
from loadgen.server.tokenizer import token_ids, tokenize, vocabulary_id

# What the pieces treat differently, and any character at all.
AWKWARD = " \t\n\r\x00\x0b\x0c\x1c\x7f\x85\xa0\u2028\u3000<|>!-.aZ09\u00e9\u0663\u4f60\U0001f600\ud800"
texts = st.one_of(
    st.text(st.one_of(st.sampled_from(AWKWARD), st.characters()), max_size=60),
    st.lists(
        st.sampled_from([" word", "<|eot_id|>", " ", "  ", "\n\n", "123", "\u00e9", "\x00", ", "]),
        max_size=250,
    ).map("".join),
)


def ids_of(text: str) -> list[bytes]:
    ids = token_ids(text)
    assert len(ids) % 8 == 0
    return [ids[i : i + 8] for i in range(0, len(ids), 8)]


@given(texts)
@example("\xa0\n\x85\r" * 5)
@example("\u0663\u0664\u0665 " * 5)
@example("\x00\u0663\x00\xa0\n")
@settings(max_examples=500, deadline=None)
def test_there_are_as_many_tokens_as_are_counted(text: str) -> None:
    assert len(ids_of(text)) == len(tokenize(text)) == count_tokens(text)


@given(texts)
@settings(max_examples=300, deadline=None)
def test_tokens_tile_the_text(text: str) -> None:
    data = text.encode("utf-8", "surrogatepass")
    at = 0
    for token in tokenize(text):
        assert token.start == at
        assert data[token.start : token.stop] == token.text.encode("utf-8", "surrogatepass")
        at = token.stop
    assert at == len(data)


@given(texts)
@settings(max_examples=300, deadline=None)
def test_ids_are_equal_where_texts_of_tokens_are(text: str) -> None:
    pairs = set(zip((token.text for token in tokenize(text)), ids_of(text), strict=True))
    assert len({text for text, _ in pairs}) == len({ids for _, ids in pairs}) == len(pairs)
    for part, ids in pairs:
        # A text of its own is one token when nothing has to be cut out of it.
        if count_tokens(part) == 1:
            assert ids_of(part) == [ids]


def settled(prefix: str) -> str:
    """The prefix without its last word and the white space around it.

    Control characters at the very beginning belong to the first word.
    """
    words = prefix.split()
    if not words:
        return ""
    rest = prefix.rstrip()[: -len(words[-1])].rstrip()
    return "" if all(c < " " or c == "\x7f" for c in rest) else rest


@given(texts, texts, texts)
@settings(max_examples=500, deadline=None)
def test_texts_share_the_ids_of_a_common_prefix_to_its_last_word(prefix: str, one: str, other: str) -> None:
    shared_bytes = 0
    for a, b in zip(tokenize(prefix + one), tokenize(prefix + other), strict=False):
        if a != b:
            break
        shared_bytes = a.stop
    assert shared_bytes >= len(settled(prefix).encode("utf-8", "surrogatepass"))


def test_prompts_of_one_template_share_its_ids_and_nothing_more() -> None:
    template = "<|start|>system\n\nYou answer briefly, and you do not guess.<|eot_id|><|start|>user\n\n"
    one, other = ids_of(template + "Which river is longest?"), ids_of(template + "Name a prime above 100.")
    shared = next(i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b)
    assert shared == count_tokens(template)


def test_a_sentence_followed_by_hand() -> None:
    text = "In 2024, Zo\u00eb's\tcat\n ate 12345 antidisestablishment!\n"
    assert [token.text for token in tokenize(text)] == [
        "In", " ", "202", "4", ",", " Zo", "\u00eb", "'", "s", "\t", "cat", "\n", " ate", " ", "123", "45",
        " antidisestab", "lishment", "!\n",
    ]  # fmt: skip


def test_fractions_are_carried_from_left_to_right() -> None:
    # 50.5 rounds to 50 and 51.51 to 52: the 51st word is two tokens. 150.49 and 151.5, to 152: the 150th.
    lengths = [len(token.text) for token in tokenize(" word" * 200)]
    assert [i for i, length in enumerate(lengths) if length < 5] == [50, 51, 150, 151]
    assert lengths[50] + lengths[51] == 5
    # 1.125, 2.25, 3.375, 4.5, 5.625 round to 1, 2, 3, 4, 6: one token more than characters.
    assert [token.text for token in tokenize("\u00e9" * 6)] == ["\u00e9"] * 4 + ["", "\u00e9", "\u00e9"]


def test_control_characters_belong_to_what_stands_before_them() -> None:
    assert [token.text for token in tokenize("\x00\x00a\x07 b\x00")] == ["\x00\x00a\x07", " b\x00"]
    assert [token.text for token in tokenize("\x00\x01")] == ["\x00\x01"]
    assert tokenize("") == [] and token_ids("") == b""


def test_a_character_of_code_zero_is_not_lost_from_an_id() -> None:
    assert len({token_ids("a" + "\x00" * n) for n in range(4)}) == 4


def test_an_id_is_the_polynomial_of_its_characters_at_any_place() -> None:
    def polynomial(text: str) -> bytes:
        total = sum((ord(c) + 1) * pow(0x9E3779B97F4A7C15, k, 1 << 64) for k, c in enumerate(text))
        return (total % (1 << 64)).to_bytes(8, "little")

    text = " caf\u00e9 <|eot_id|>" + "plain words, " * 6000  # longer than the tables
    assert len(text) > 1 << 16
    assert ids_of(text) == [polynomial(token.text) for token in tokenize(text)]
    assert ids_of(text[:2000]) == [polynomial(token.text) for token in tokenize(text[:2000])]


@pytest.mark.parametrize("extra", [-1, 0, 1])
def test_the_end_of_the_tables_is_no_edge(extra: int) -> None:
    ids = ids_of("a" * ((1 << 16) + extra))
    # The last whole piece of twelve, and the first.
    assert ids[-2] == ids[0]


def test_reply_words_are_one_token_each_with_the_ids_of_replies() -> None:
    for number, word in enumerate(WORDS):
        (token,) = tokenize(word)
        assert (token.id, token.text) == (token_fields(number)["id"], word)
    (marker,) = tokenize(EOS_TEXT)
    assert marker.id == token_fields(None)["id"]


@given(texts)
def test_shown_ids_are_ordinary_ones_and_not_those_of_other_words(text: str) -> None:
    reply_ids = {token_fields(number)["id"] for number in range(len(WORDS))}
    for token in tokenize(text):
        assert token.id == vocabulary_id(token.text)
        if token.text not in (*WORDS, EOS_TEXT):
            assert 0 <= token.id < 128_000
            assert token.id not in reply_ids


def test_ids_are_the_same_in_every_process() -> None:
    text = "The same text, in 2 processes: \u00e9\u4f60 <|eot_id|>\n" * 20
    program = (
        "import sys; from loadgen.server.tokenizer import token_ids, tokenize\n"
        "text = sys.stdin.buffer.read().decode()\n"
        "print(token_ids(text).hex(), [t.id for t in tokenize(text)])"
    )
    expected = f"{token_ids(text).hex()} {[token.id for token in tokenize(text)]}"
    for seed in ("0", "4711"):
        done = subprocess.run(
            [sys.executable, "-c", program],
            input=text.encode(),
            capture_output=True,
            check=True,
            env={**os.environ, "PYTHONHASHSEED": seed},
        )
        assert done.stdout.decode().strip() == expected
