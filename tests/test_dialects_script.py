"""What replies of the other dialects say: characters of several tokens, and stop strings."""

from __future__ import annotations

import pytest

from loadgen.server.dialects.script import (
    CHARACTER_TOKENS,
    CHARACTERS,
    hold_beginnings,
    hold_longest,
    hold_nothing,
    write_script,
)
from loadgen.server.text import WORDS

IDS = range(40)


def pieces(script):
    return [script.piece(i) for i in range(1, script.plan.tokens + 1)]


def test_48_tokens_of_emoji_are_16_chunks():
    """The case measured on llama-server and on vLLM (docs: real servers)."""
    script = write_script(1, 7, 48, exact=True, wide=True)
    sent = pieces(script)
    assert (script.plan.tokens, sum(map(bool, sent))) == (48, 16)
    assert all(len(p) == 1 and p in CHARACTERS for p in sent if p)
    assert "".join(sent) == script.text


@pytest.mark.parametrize("tokens", range(1, 8))
def test_a_character_cut_short_is_never_sent(tokens):
    script = write_script(1, 7, tokens, exact=True, wide=True)
    assert len(script.text) == tokens // CHARACTER_TOKENS
    assert script.plan.finish_reason == "length"


def test_the_end_marker_is_a_token_without_text():
    script = write_script(1, 7, 5000, exact=False, wide=False)
    assert script.plan.finish_reason == "stop"
    assert script.at_end_marker
    assert script.piece(script.plan.tokens) == ""
    assert len(script.text.split()) == script.plan.tokens - 1


@pytest.mark.parametrize("hold", [hold_longest, hold_beginnings, hold_nothing])
@pytest.mark.parametrize(
    "stop", [[" a"], ["ing "], ["e", "zzz"], [" water follows", "nds"], ["no such words"]]
)
def test_a_stop_string_ends_the_reply_wherever_it_stands(stop, hold):
    """Oracle: a plain search through the reply that the same request gets without stop strings."""
    for request_id in IDS:
        whole = write_script(1, request_id, 100, exact=True, wide=False)
        words = [WORDS[n] for n in whole.plan.numbers]
        script = write_script(1, request_id, 100, exact=True, wide=False, stop=stop, hold=hold)
        count = next((c for c in range(1, 101) if any(s in "".join(words[:c]) for s in stop)), None)
        if count is None:
            assert (script.plan.tokens, script.text, script.stop_string) == (100, whole.text, None)
            assert script.plan.finish_reason == "length"
            continue
        assert (script.plan.tokens, script.plan.finish_reason) == (count, "stop")
        places = [at for s in stop if (at := "".join(words[:count]).find(s)) >= 0]
        assert script.text == whole.text[: min(places)]
        assert script.stop_string in stop
        kept = write_script(1, request_id, 100, exact=True, wide=False, stop=stop, keep_stop=True, hold=hold)
        assert kept.text == script.text + script.stop_string


def test_vllm_sends_all_but_one_less_than_the_longest_stop_string():
    """Recorded: with " city" and " the", vLLM sent " P" of " Paris", then letter by letter."""
    for request_id in IDS:
        script = write_script(
            1, request_id, 30, exact=True, wide=False, stop=[" city", "@@"], hold=hold_longest
        )
        sent, seen = "", ""
        for index in range(1, script.plan.tokens):
            seen += script.token_text(index)
            sent += script.piece(index)
            assert sent == seen[: max(len(seen) - 4, 0)]


def test_llama_cpp_keeps_back_only_what_may_become_a_stop_string():
    stop = [" turns wheel", "ght"]
    held = 0
    for request_id in IDS:
        script = write_script(1, request_id, 60, exact=True, wide=False, stop=stop, hold=hold_beginnings)
        sent, seen = "", ""
        for index in range(1, script.plan.tokens):
            seen += script.token_text(index)
            sent += script.piece(index)
            back = seen[len(sent) :]
            held += bool(back)
            assert seen.startswith(sent)
            assert not back or any(s.startswith(back) for s in stop)
            assert not any(
                s.startswith(seen[-k:]) for s in stop for k in range(len(back) + 1, len(s)) if k <= len(seen)
            )
    assert held


def test_min_new_tokens():
    short = min(write_script(1, i, 500, exact=False, wide=False).plan.tokens for i in IDS)
    assert short < 40
    for request_id in IDS:
        script = write_script(1, request_id, 500, exact=False, wide=False, min_new_tokens=40, stop=["e"])
        assert script.plan.tokens >= 40
    assert write_script(1, 1, 8, exact=False, wide=False, min_new_tokens=40).plan.tokens == 8
