"""llama.cpp's dialect where it is odd: everything here was seen on the real server, b1-7e4c0a9."""

from __future__ import annotations

import asyncio
import re

import pytest
from served import ask, request_bytes

from loadgen.launch import Launcher

CHAT, COMPLETIONS, NATIVE = "/v1/chat/completions", "/v1/completions", "/completion"
MESSAGES = [{"role": "user", "content": "Hi"}]


def post(path, body, **launch):
    return ask(lambda server: server.post(path, body), dialect="llama.cpp", **launch)


@pytest.mark.parametrize(
    ("prompts", "tokens"),
    [(["abc", ""], [2, 0]), (["", "abc"], [0, 2]), (["", ""], [0, 0]), ([""], [0]), ([[], "a"], [0, 2])],
)
def test_empty_prompts_among_others_are_answered_with_nothing(prompts, tokens):
    asked = {"prompt": prompts, "max_tokens": 2, "ignore_eos": True}
    whole = post(COMPLETIONS, asked).json()
    assert [c["index"] for c in whole["choices"]] == list(range(len(prompts)))
    assert [len(c["text"].split()) for c in whole["choices"]] == tokens
    assert [c["finish_reason"] for c in whole["choices"]] == ["length"] * len(prompts)
    assert whole["usage"]["completion_tokens"] == tokens[0]
    events = [e for e in post(COMPLETIONS, asked | {"stream": True}).events() if e is not None]
    used = {e["choices"][0]["index"]: e["usage"]["completion_tokens"] for e in events if "usage" in e}
    assert [used[i] for i in range(len(prompts))] == tokens
    native = post(NATIVE, asked).json()
    found = native if isinstance(native, list) else [native]
    assert [(v["tokens_predicted"], v["stop_type"]) for v in found] == [
        (t, "limit" if t else "none") for t in tokens
    ]


@pytest.mark.parametrize(("path", "prompts"), [(COMPLETIONS, ["a", "b"]), (NATIVE, ["a", "b"])])
def test_a_stream_of_several_prompts_begins_with_null(path, prompts):
    several = post(path, {"prompt": prompts, "max_tokens": 2, "stream": True}).events()
    assert (several[0], several.count(None)) == (None, 1)
    alone = post(path, {"prompt": prompts[:1], "n": 2, "max_tokens": 2, "stream": True}).events()
    assert None not in alone


@pytest.mark.parametrize(
    ("limits", "tokens"),
    [
        ({"max_tokens": 2, "n_predict": 3}, 3),
        ({"max_tokens": 2, "n_predict": 3, "max_completion_tokens": 4}, 3),
        ({"max_tokens": 2, "max_completion_tokens": 4}, 4),
        ({"max_tokens": 2, "n_predict": None}, 2),
        ({"max_tokens": 2.7}, 2),
        ({"max_tokens": -1.5, "n_predict": 2}, 2),
        ({"max_tokens": True}, 1),
    ],
)
def test_which_limit_counts(limits, tokens):
    value = post(CHAT, {"messages": MESSAGES, "ignore_eos": True} | limits).json()
    assert value["usage"]["completion_tokens"] == tokens


@pytest.mark.parametrize(
    ("path", "more", "count"),
    [
        (CHAT, {"logprobs": True}, 20),
        (CHAT, {"logprobs": 1, "top_logprobs": 3}, 3),
        (CHAT, {"logprobs": True, "top_logprobs": 0}, None),
        (CHAT, {"logprobs": True, "top_logprobs": -1}, None),
        (CHAT, {"n_probs": 2}, 2),
        (COMPLETIONS, {"logprobs": 1.5}, 1),
        (COMPLETIONS, {"logprobs": -3}, None),
        (COMPLETIONS, {"logprobs": 0}, None),
        (COMPLETIONS, {"n_probs": 2}, 2),
        (COMPLETIONS, {"logprobs": 10**8}, 128),  # the vocabulary: all words that replies have
    ],
)
def test_how_many_likeliest_tokens_are_told(path, more, count):
    value = post(path, {"messages": MESSAGES, "prompt": "x", "max_tokens": 1} | more).json()
    logprobs = value["choices"][0].get("logprobs")
    assert (None if logprobs is None else len(logprobs["content"][0]["top_logprobs"])) == count


def test_a_whole_native_answer_has_its_probabilities():
    value = post(NATIVE, {"prompt": "x", "n_predict": 3, "ignore_eos": True, "n_probs": 2}).json()
    assert [len(p["top_logprobs"]) for p in value["completion_probabilities"]] == [2, 2, 2]


@pytest.mark.parametrize("name", ["seed", "temperature"])
def test_a_number_beyond_64_bits_is_a_float_and_ends_no_stream_early(name):
    asked = {"prompt": "x", "n_predict": 2, "stream": True, name: 10**30}
    response = post(NATIVE, asked)
    assert response.events()[-1]["generation_settings"][name] == 1e30


def test_half_a_character_is_no_json():
    for body in (rb'{"prompt": "\ud800"}', rb'{"prompt": "\uD83E\ud83e"}', rb'{"\udd8a": 1, "prompt": "x"}'):
        response = post(COMPLETIONS, body)
        assert response.status == 500
        assert "surrogate" in response.json()["error"]["message"]
    fox = post(NATIVE, rb'{"prompt": "\ud83e\udd8a", "n_predict": 1}').json()
    assert fox["prompt"] == "\N{FOX FACE}"


def metrics(page: str) -> dict[str, float]:
    return {name: float(value) for name, value in re.findall(r"^llamacpp:(\S+) (\S+)$", page, re.MULTILINE)}


def test_rates_are_those_since_the_last_page_and_totals_are_kept():
    """Of k tokens, k - 1 took generation time; of p prompt and k reply tokens, p + k - 1 were cached."""

    async def main(server):
        pages, timings = [], []
        for tokens in (40, 10, None):
            if tokens is not None:
                asked = {"prompt": f"{tokens} words.", "n_predict": tokens, "ignore_eos": True}
                timings.append((await server.post(NATIVE, asked)).json())
            pages.append(metrics((await server.get("/metrics")).body.decode()))
        return pages, timings

    (first, second, third), (a, b) = ask(main, dialect="llama.cpp")
    for page, value, tokens in ((first, a, 40), (second, b, 10)):
        predicted_s, prompt_s = value["timings"]["predicted_ms"] / 1e3, value["timings"]["prompt_ms"] / 1e3
        assert page["predicted_tokens_seconds"] == pytest.approx((tokens - 1) / predicted_s, rel=1e-3)
        assert page["prompt_tokens_seconds"] == pytest.approx(value["tokens_evaluated"] / prompt_s, rel=1e-3)
    assert (third["predicted_tokens_seconds"], third["prompt_tokens_seconds"]) == (0, 0)
    assert [p["tokens_predicted_total"] for p in (first, second, third)] == [40, 50, 50]
    assert third["n_tokens_max"] == a["tokens_evaluated"] + 40 - 1


def test_tokens_of_a_reply_that_was_broken_off_are_counted_with_their_time():
    async def main(server):
        connection = server.connect()
        asked = {"messages": MESSAGES, "n_predict": 900, "ignore_eos": True}
        connection.transport.write(request_bytes(CHAT, asked))
        await asyncio.sleep(0.5)
        during = metrics((await server.get("/metrics")).body.decode())
        connection.transport.close()
        await asyncio.sleep(0.1)
        return during, metrics((await server.get("/metrics")).body.decode()), server.service.in_flight

    during, after, in_flight = ask(main, dialect="llama.cpp", launcher=Launcher(max_num_seqs=4))
    assert (during["tokens_predicted_total"], during["requests_processing"], in_flight) == (0, 1, 0)
    assert after["tokens_predicted_total"] > 10
    assert 0 < after["tokens_predicted_seconds_total"] < 0.5
