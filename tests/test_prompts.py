from __future__ import annotations

import gzip
import json
import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from loadgen.errors import ConfigError
from loadgen.plan import build, tokenizer_counter
from loadgen.prompts.jsonl import JsonlSource
from loadgen.prompts.recording import read_recording
from loadgen.prompts.replies import reply_tokens
from loadgen.prompts.sharegpt import SharegptSource
from loadgen.prompts.synthetic import SyntheticSource
from loadgen.prompts.template import render_llama3
from loadgen.prompts.tokens import PIECE, count_tokens
from loadgen.prompts.trace import TraceSource
from loadgen.scenario import Scenario
from loadgen.types import PromptSource, Request

SHARED = Path(os.environ.get("LOADGEN_SHARED", Path(__file__).resolve().parent.parent.parent / "shared"))
CHATS = SHARED / "data/chat/sharegpt_thankyou_10k.jsonl.gz"
AZURE = SHARED / "data/traces/azure_llm_2023_conv.csv.gz"
TOKENIZER = SHARED / "data/chat/smollm2-tokenizer.json.gz"


def take(source: PromptSource, n: int, seed: int = 0) -> list[Request]:
    return list(islice(source.requests(np.random.default_rng(seed)), n))


def real_chats(n: int) -> list[dict[str, Any]]:
    if not CHATS.exists():
        pytest.skip("the 10,000 real conversations are not beside this checkout")
    with gzip.open(CHATS, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in islice(lines, n)]


def test_synthetic_chats_have_the_lengths_of_real_ones() -> None:
    lengths = np.array([r.body["prompt_tokens"] for r in take(SyntheticSource(), 4000)])
    assert lengths.min() >= 200 and lengths.max() <= 4010
    # Five standard errors of 4,000 draws around the real set's mean, and its quantiles within 7 %.
    assert lengths.mean() == pytest.approx(1200, abs=5 * 779 / np.sqrt(4000))
    assert lengths.std() == pytest.approx(779, rel=0.05)
    assert np.quantile(lengths, [0.05, 0.5, 0.95]) == pytest.approx([267, 1086, 2492], rel=0.07)


def test_synthetic_chats_alternate_end_in_thanks_and_share_no_beginning() -> None:
    requests = take(SyntheticSource(max_new_tokens=99), 500)
    assert [r.id for r in requests] == list(range(500))
    for request in requests:
        messages = request.body["messages"]
        assert [m["role"] for m in messages] == ["user", "assistant"] * (len(messages) // 2) + ["user"]
        assert messages[-1]["content"] == "Thank you!" and all(m["content"].strip() for m in messages)
        counted = sum(count_tokens(m["content"]) for m in messages)
        assert request.body["prompt_tokens"] == pytest.approx(counted, abs=12)
        assert request.body["max_new_tokens"] == 99 and "output_tokens" not in request.body
    assert len({r.body["messages"][0]["content"][:16] for r in requests}) == 500
    assert take(SyntheticSource(), 20) == take(SyntheticSource(), 20)
    assert take(SyntheticSource(), 5, seed=1) != take(SyntheticSource(), 5, seed=2)


def test_the_splitter_on_text_whose_tokens_are_known() -> None:
    """cl100k: "Thank you!" is 3 tokens, a plain word with its space 1, three digits 1."""
    assert count_tokens("") == 0
    assert count_tokens("Thank you!") == 3
    assert count_tokens("the quick brown fox jumps over the lazy dog") == 9
    assert count_tokens("123456789") == 3
    assert count_tokens("<|begin_of_text|><|eot_id|>") == 2
    assert count_tokens("日本語") == 3


def test_the_splitters_stated_error_holds_on_real_conversations() -> None:
    rows = real_chats(10_000)[::4]
    truth = np.array([row["n_tokens"] for row in rows], dtype=float)
    counts = np.array([sum(count_tokens(m["content"]) for m in row["messages"]) for row in rows])
    error = counts / truth - 1
    assert np.abs(error).mean() < 0.04 and abs(error.mean()) < 0.006
    assert np.quantile(np.abs(error), 0.95) < 0.12 and counts.sum() / truth.sum() == pytest.approx(
        1, abs=0.01
    )


def test_reply_lengths_have_mean_52_and_depend_on_seed_and_id_alone() -> None:
    draws = np.array([reply_tokens(1, k, 10_000) for k in range(20_000)])
    assert draws.min() == 10 and draws.max() == 256
    assert draws.mean() == pytest.approx(52, abs=5 * draws.std() / np.sqrt(len(draws)))
    assert [reply_tokens(1, k, 10_000) for k in (5, 3, -2)] == [
        draws[5],
        draws[3],
        reply_tokens(1, -2, 10_000),
    ]
    assert any(reply_tokens(0, k, 999) != reply_tokens(1, k, 999) for k in range(5))
    assert reply_tokens(1, 0, 12) <= 12 and reply_tokens(1, 0, 1) == 1


def test_the_template_is_llama_3s() -> None:
    chat = [{"role": "user", "content": " Hi "}, {"role": "assistant", "content": "Yo"}]
    assert render_llama3(chat) == (
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nYo<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    )


def write_jsonl(path: Path, rows: list[Any]) -> Path:
    text = "\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


@pytest.mark.parametrize("name", ["p.jsonl", "p.jsonl.gz"])
def test_jsonl_takes_messages_prompts_and_known_lengths(tmp_path: Path, name: str) -> None:
    chat = [{"role": "user", "content": "Hi", "extra": 1}]
    rows = [{"messages": chat, "id": 7}, "", {"prompt": "Hello there", "output_tokens": 5}]
    first, second = take(JsonlSource(write_jsonl(tmp_path / name, rows), max_new_tokens=64), 9)
    assert first.body["messages"] == [{"role": "user", "content": "Hi"}]
    assert first.body["max_new_tokens"] == 64 and first.body["source_id"] == "7"
    assert second.body["max_new_tokens"] == second.body["output_tokens"] == 5


def test_jsonl_lines_end_at_newlines_only(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text('{"prompt": "a\u2028b\x85c"}\r\n{"prompt": "d"}\n', encoding="utf-8", newline="")
    assert [r.body["prompt"] for r in take(JsonlSource(path), 9)] == ["a\u2028b\x85c", "d"]


def test_jsonl_repeats_and_shuffles_on_request_only(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "p.jsonl", [{"prompt": f"p{k}"} for k in range(5)])
    assert [r.body["prompt"] for r in take(JsonlSource(path), 9)] == ["p0", "p1", "p2", "p3", "p4"]
    again = take(JsonlSource(path, repeat=True, shuffle=True), 10)
    assert [r.id for r in again] == list(range(10))
    assert sorted(r.body["prompt"] for r in again[:5]) == ["p0", "p1", "p2", "p3", "p4"]


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ("{", "expected a JSON object"),
        ({"text": "x"}, "either messages or prompt"),
        ({"prompt": ""}, "prompt: expected text"),
        ({"messages": []}, "messages: expected a list"),
        ({"messages": [{"role": "user"}]}, r"messages.0: expected role and content"),
        ({"prompt": "x", "output_tokens": 0}, "output_tokens: expected a whole number > 0, got 0"),
        ({"prompt": "x", "max_new_tokens": True}, "max_new_tokens: expected a whole number > 0, got True"),
    ],
)
def test_jsonl_names_file_and_line_of_a_mistake(tmp_path: Path, row: Any, says: str) -> None:
    path = write_jsonl(tmp_path / "p.jsonl", [{"prompt": "fine"}, row])
    with pytest.raises(ConfigError, match=says) as refusal:
        JsonlSource(path)
    assert f"{path}:2" in str(refusal.value)


SHAREGPT = [
    {
        "id": "a",
        "conversations": [{"from": "human", "value": "Hi?"}, {"from": "gpt", "value": "one two three"}],
    },
    {"id": "b", "conversations": [{"from": "gpt", "value": "only me"}]},
    {
        "id": "c",
        "conversations": [
            {"from": "gpt", "value": "x"},
            {"from": "human", "value": "Q"},
            {"from": "gpt", "value": "A"},
            {"from": "human", "value": "Q2"},
        ],
    },
]


@pytest.fixture
def sharegpt(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "s.json"
    path.write_text(json.dumps(SHAREGPT, indent=1))
    yield path


def test_sharegpt_first_turn_knows_the_replys_length(sharegpt: Path) -> None:
    source = SharegptSource(sharegpt)
    first, second = take(source, 9)
    assert first.body["prompt"] == "Hi?" and first.body["output_tokens"] == first.body["max_new_tokens"] == 3
    assert second.body["prompt"] == "Q" and source.notes == ["s.json: 1 records have no usable turns"]


def test_sharegpt_whole_chats_end_in_thanks(sharegpt: Path) -> None:
    first, second = take(SharegptSource(sharegpt, turns="all"), 9)
    assert [m["content"] for m in second.body["messages"]] == ["Q", "A", "Thank you!"]
    assert first.body["messages"][-1] == {"role": "user", "content": "Thank you!"}
    assert "output_tokens" not in first.body


@pytest.mark.parametrize("compress", [False, True])
def test_a_truncated_sharegpt_file_is_used_as_far_as_it_goes(tmp_path: Path, compress: bool) -> None:
    big = [{"id": str(k), "conversations": SHAREGPT[0]["conversations"]} for k in range(500)]
    data = json.dumps(big).encode()
    path = tmp_path / ("s.json.gz" if compress else "s.json")
    packed = gzip.compress(data) if compress else data
    path.write_bytes(packed[: len(packed) * 2 // 3])
    source = SharegptSource(path)
    assert 100 < len(take(source, 1000)) < 500
    assert "truncated" in source.notes[0]


def test_what_is_no_sharegpt_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "s.json"
    path.write_text('{"a": 1}')
    with pytest.raises(ConfigError, match="expected a JSON list of conversations"):
        SharegptSource(path)


AZURE_TEXT = (
    "TIMESTAMP,ContextTokens,GeneratedTokens\r\n"
    "2023-11-16 18:15:46.6805900,374,44\r\n"
    "2023-11-16 18:15:50.9951690,396,109\r\n"
    "2023-11-16 18:16:00.0000001,50,0"
)


def test_azure_rows_survive_crlf_seven_digits_and_no_last_newline(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(AZURE_TEXT.encode())
    trace = read_recording(path)
    assert trace.times_s == pytest.approx([0, 4.314579, 13.3194101], abs=2e-7)
    assert trace.context_tokens.tolist() == [374, 396, 50] and trace.generated_tokens.tolist() == [44, 109, 0]
    requests = take(TraceSource(trace.context_tokens, trace.generated_tokens), 9)
    assert [r.body["output_tokens"] for r in requests] == [44, 109, 1]
    assert [r.body["prompt_tokens"] for r in requests] == pytest.approx([374, 396, 50], abs=1)
    assert all(count_tokens(r.body["prompt"]) == r.body["prompt_tokens"] for r in requests)
    path.write_bytes(AZURE_TEXT.replace(",396,", ",many,").encode())
    with pytest.raises(ConfigError, match=r"t\.csv:3: expected a time and two numbers of tokens"):
        read_recording(path)


def test_composed_text_has_exactly_the_pieces_asked_for() -> None:
    source, draw = SyntheticSource(), np.random.default_rng(0)
    for pieces in (1, 2, 5, 9, 10, 40, 333, 5000):
        assert len(PIECE.findall(source.text(draw, 12, pieces))) == pieces


def test_the_real_azure_trace_reads_as_published() -> None:
    if not AZURE.exists():
        pytest.skip("the Azure trace is not beside this checkout")
    trace = read_recording(AZURE)
    assert len(trace.times_s) == 19_366 and trace.times_s[-1] == pytest.approx(3501.7, abs=0.1)
    assert trace.context_tokens.mean() == pytest.approx(1154.7, abs=0.1)
    assert trace.generated_tokens.mean() == pytest.approx(211.1, abs=0.1)


def scenario(**changes: Any) -> Scenario:
    load = {"pattern": "constant", "interval_s": 0.5, "requests": 4, "warmup_requests": 2}
    return Scenario.model_validate({"name": "t", "load": load | changes.pop("load", {}), **changes})


def test_a_plan_joins_arrivals_prompts_and_shaping() -> None:
    planned = build(scenario(load={"shaping": {"policy": "gate", "interval_s": 2.0}}))
    assert [a.demand_s for a in planned.measured.arrivals] == [0, 0.5, 1, 1.5]
    assert [a.due_s for a in planned.measured.arrivals] == [0, 2, 2, 2]
    assert [a.request.id for a in planned.warmup.arrivals] == [-2, -1]
    assert {a.request.phase for a in planned.warmup.arrivals} == {"warmup"}
    assert not planned.exact_lengths and planned.warmup.max_in_flight == 1


def test_warm_up_and_pattern_leave_the_measured_prompts_alone() -> None:
    def prompts(**load: Any) -> list[Any]:
        return [a.request.body for a in build(scenario(load=load)).measured.arrivals]

    assert prompts(warmup_requests=0) == prompts(warmup_requests=5)
    poisson = Scenario.model_validate(
        {"name": "t", "load": {"pattern": "poisson", "rate_rps": 2.0, "requests": 4}}
    )
    assert [a.request.body for a in build(poisson).measured.arrivals] == prompts()


def test_too_few_prompts_is_an_error_with_both_counts(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "p.jsonl", [{"prompt": "a"}, {"prompt": "b"}, {"prompt": "c"}])
    file = {"source": "jsonl", "path": str(path)}
    with pytest.raises(ConfigError, match="3 requests and the load needs 4"):
        build(scenario(prompts=file))
    assert len(build(scenario(prompts=file | {"repeat": True})).measured.arrivals) == 4
    notes = build(scenario(prompts=file, load={"requests": 3})).notes
    assert any("warm-up repeats" in note for note in notes)


def test_trace_rows_keep_their_own_lengths_when_thinned(tmp_path: Path) -> None:
    lines = [f"2023-11-16 18:{k // 60:02}:{k % 60:02}.5000000,{100 + k},{k + 1}" for k in range(300)]
    path = tmp_path / "t.csv"
    path.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\r\n" + "\r\n".join(lines))
    load = {"pattern": "trace", "path": str(path), "thin": 0.5}
    planned = build(Scenario.model_validate({"name": "t", "load": load, "prompts": {"source": "trace"}}))
    arrivals = planned.measured.arrivals
    first = arrivals[0].request.body["output_tokens"]
    assert 100 < len(arrivals) < 200 and planned.exact_lengths
    assert [a.due_s + first for a in arrivals] == pytest.approx(
        [a.request.body["output_tokens"] for a in arrivals]
    )
    assert any("replaying" in note for note in planned.notes)


def test_a_tokenizer_file_replaces_the_estimate() -> None:
    pytest.importorskip("tokenizers", reason="the tokenizers package is not installed")
    if not TOKENIZER.exists():
        pytest.skip("no tokenizer file beside this checkout")
    row = real_chats(1)[0]
    count = tokenizer_counter(TOKENIZER)
    assert sum(count(m["content"]) for m in row["messages"]) == row["n_tokens_smollm2"]


def test_a_tokenizer_file_that_is_none_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("tokenizers", reason="the tokenizers package is not installed")
    (tmp_path / "t.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"expected a tokenizer\.json"):
        tokenizer_counter(tmp_path / "t.json")
