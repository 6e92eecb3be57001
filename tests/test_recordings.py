"""Recorded traffic in three formats, told apart by content, and the prompts composed from it."""

from __future__ import annotations

import gzip
import json
import math
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from loadgen.errors import ConfigError
from loadgen.plan import build, describe_plan
from loadgen.prompts.recording import Recording, read_recording
from loadgen.prompts.tokens import count_tokens
from loadgen.prompts.trace import TraceSource
from loadgen.scenario import Scenario
from loadgen.server.tokenizer import token_ids
from loadgen.types import Request

TRACES = Path(__file__).resolve().parents[2] / "shared/data/traces"
AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens\r\n2023-11-16 18:15:46.6805900,374,44\r\n"
BURSTGPT = (
    "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
    "5,ChatGPT,472,18,490,Conversation log\n"
    "118,GPT-4,417,276,693,Conversation log\n"
    "45,ChatGPT,1087,230,1317,API log\n"
    "120,ChatGPT,88,0,88,Conversation log\n"
)
ROWS: list[dict[str, Any]] = [
    {"timestamp": 0, "input_length": 1200, "output_length": 5, "hash_ids": [0, 1, 2]},
    {"timestamp": 0, "input_length": 1500, "output_length": 9, "hash_ids": [0, 1, 3]},
    {"timestamp": 3000, "input_length": 700, "output_length": 1, "hash_ids": [0, 4]},
    {"timestamp": 6500, "input_length": 600, "output_length": 2, "hash_ids": [5, 6]},
]


def mooncake(rows: list[dict[str, Any]]) -> str:
    return "\n".join(map(json.dumps, rows)) + "\n"


def written(path: Path, text: str) -> Path:
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def take(source: TraceSource, n: int) -> list[Request]:
    return list(islice(source.requests(np.random.default_rng(0)), n))


def blocks_source(rows: list[dict[str, Any]], *, repeat: bool = False) -> TraceSource:
    lengths = (
        np.array([row["input_length"] for row in rows]),
        np.array([row["output_length"] for row in rows]),
    )
    return TraceSource(*lengths, repeat=repeat, blocks=tuple(tuple(row["hash_ids"]) for row in rows))


def common_tokens(one: Request, other: Request) -> int:
    """How many leading tokens two prompts share, as the embedded server's cache compares them."""
    a, b = (np.frombuffer(token_ids(r.body["prompt"]), "<u8") for r in (one, other))
    n = min(len(a), len(b))
    return int(np.argmin(np.append(a[:n] == b[:n], False)))


@pytest.mark.parametrize("name", ["t.csv", "misnamed.csv.gz", "t.jsonl"])
def test_a_file_is_what_its_first_line_says(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    assert read_recording(written(path, AZURE)).context_tokens.tolist() == [374]
    conversation = read_recording(written(path, mooncake(ROWS)))
    assert conversation.times_s.tolist() == [0, 0, 3, 6.5]
    assert conversation.context_tokens.tolist() == [1200, 1500, 700, 600]
    assert conversation.generated_tokens.tolist() == [5, 9, 1, 2]
    assert conversation.blocks == ((0, 1, 2), (0, 1, 3), (0, 4), (5, 6))
    burst = read_recording(written(path, BURSTGPT))
    assert burst.times_s.tolist() == [0, 40, 113] and burst.context_tokens.tolist() == [472, 1087, 417]
    assert burst.generated_tokens.tolist() == [18, 230, 276] and burst.blocks is None
    assert burst.notes == (f"{name}: left out 1 of 4 requests that failed when recorded (0 response tokens)",)


def test_columns_of_burstgpt_are_found_by_name(tmp_path: Path) -> None:
    second = (
        "Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
        "7.5,31,2.25,ChatGPT,12,34,46,Conversation log\n9,31,1,ChatGPT,56,78,134,Conversation log"
    )
    trace = read_recording(written(tmp_path / "b.csv", second))
    assert trace.times_s.tolist() == [0, 1.5] and trace.generated_tokens.tolist() == [34, 78]
    assert trace.notes == ()
    seconds = BURSTGPT.replace("Timestamp,", "Timestamp(s),")
    assert len(read_recording(written(tmp_path / "c.csv", seconds)).times_s) == 3


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", ":1: expected a trace, Azure CSV"),
        ("a,b\n1,2\n", "BurstGPT CSV (Timestamp,Request tokens,Response tokens among its columns)"),
        ('{"prompt": "hi"}\n', 'hash_ids), got \'{"prompt": "hi"}\''),
        ("[1]\n", "or Mooncake JSON lines (timestamp, input_length, output_length, hash_ids), got '[1]'"),
        (
            BURSTGPT.replace(",472,", ",many,"),
            ":2: expected a time and two numbers of tokens as Timestamp,Req",
        ),
        (BURSTGPT.replace("5,ChatGPT,472", "nan,ChatGPT,472"), ":2: expected a time"),
        (BURSTGPT.replace("5,ChatGPT,472", "5,472"), ":2: expected a time"),
        (BURSTGPT.replace("1087", "-1087"), ":4: expected a time"),
        (BURSTGPT.replace("1087", "9" * 40), ":4: expected a time"),
        (BURSTGPT.splitlines()[0], "expected at least one answered request, got none"),
        (AZURE + "yesterday,1,2", ":3: expected a time and two numbers of tokens as TIMESTAMP"),
        (mooncake(ROWS).replace("3000", '"3000"'), ":3: expected timestamp, input_length, output_length as"),
        (mooncake(ROWS) + "{", ":5: expected timestamp, input_length, output_length as numbers"),
        (mooncake(ROWS).replace("[0, 4]", "[0]"), ":3 hash_ids: expected 2 of them, one for each 512 tokens"),
        (mooncake(ROWS).replace("[0, 4]", "[0, -4]"), ":3 hash_ids: expected a list of whole numbers >= 0"),
        (mooncake([{**ROWS[0], "output_length": -1}]), ":1: expected lengths of 0 to 1000000000, got"),
    ],
)
def test_a_file_that_is_none_of_them_is_refused_in_one_line(tmp_path: Path, text: str, said: str) -> None:
    path = written(tmp_path / "t.txt", text)
    with pytest.raises(ConfigError) as refusal:
        read_recording(path)
    assert said in str(refusal.value) and str(refusal.value).startswith(str(path))
    assert "\n" not in str(refusal.value)


def test_a_cut_off_file_is_used_as_far_as_it_goes(tmp_path: Path) -> None:
    rows = [{**ROWS[3], "timestamp": 100 * k, "hash_ids": [2 * k, 2 * k + 1]} for k in range(2000)]
    packed = gzip.compress(mooncake(rows).encode())
    path = tmp_path / "t.jsonl.gz"
    path.write_bytes(packed[: len(packed) // 2])
    trace = read_recording(path)
    assert 500 < len(trace.times_s) < 1500
    assert trace.notes == (
        f"t.jsonl.gz: the file is cut off; using the {len(trace.times_s)} whole lines before",
    )


def test_prompts_share_the_blocks_whose_ids_they_share_and_nothing_else() -> None:
    requests = take(blocks_source(ROWS), 4)
    for request, row in zip(requests, ROWS, strict=True):
        assert count_tokens(request.body["prompt"]) == request.body["prompt_tokens"]
        assert request.body["prompt_tokens"] == pytest.approx(row["input_length"], abs=1)
        assert request.body["output_tokens"] == row["output_length"]
    first, second, third, fourth = requests
    # Two whole blocks, and the few tokens that any two beginnings share ("Case ").
    assert 1024 - 2 <= common_tokens(first, second) <= 1024 + 5
    assert 512 - 2 <= common_tokens(first, third) <= 512 + 5
    assert common_tokens(first, fourth) <= 5


def test_rows_played_again_find_nothing_of_their_own_in_the_cache() -> None:
    requests = take(blocks_source(ROWS, repeat=True), 8)
    assert common_tokens(requests[0], requests[4]) <= 5
    assert 1024 - 2 <= common_tokens(requests[4], requests[5]) <= 1024 + 5
    assert [r.id for r in requests] == list(range(8))


def test_the_share_that_a_cache_could_save_is_counted_by_hand() -> None:
    """Whole blocks seen before: 1024 of the second prompt, 512 of the third, of 4,000 tokens."""
    rows = np.array([0, 1, 2, 3])
    trace = Recording(
        rows.astype(float),
        np.array([row["input_length"] for row in ROWS]),
        rows,
        tuple(tuple(row["hash_ids"]) for row in ROWS),
    )
    assert trace.repeated_share == pytest.approx((1024 + 512) / 4000)
    assert trace.take(np.array([1, 3])).repeated_share == 0
    assert Recording(trace.times_s, trace.context_tokens, rows).repeated_share is None


def test_a_plan_replays_a_recording_with_its_lengths_blocks_and_notes(tmp_path: Path) -> None:
    path = str(written(tmp_path / "t.jsonl.gz", mooncake(ROWS)))
    load = {"pattern": "trace", "path": path, "time_scale": 2.0, "warmup_requests": 2}
    planned = build(Scenario.model_validate({"name": "t", "load": load, "prompts": {"source": "trace"}}))
    arrivals = planned.measured.arrivals
    assert [a.due_s for a in arrivals] == [0, 0, 6, 13] and planned.exact_lengths
    assert [a.request.body["output_tokens"] for a in arrivals] == [5, 9, 1, 2]
    assert common_tokens(arrivals[0].request, arrivals[1].request) > 1000
    assert common_tokens(arrivals[0].request, planned.warmup.arrivals[0].request) <= 5
    assert planned.notes == (
        "trace: time scaled by 2",
        "trace: 38.4 % of the prompt tokens stand in whole blocks of 512 that an earlier prompt began with; "
        "the composed prompts share them",
    )
    # Lengths alone, over a load of its own; a failed request is named once.
    lengths = str(written(tmp_path / "b.csv", BURSTGPT))
    scenario = Scenario.model_validate(
        {
            "name": "t",
            "load": {"pattern": "poisson", "rate_rps": 2.0, "requests": 7},
            "prompts": {"source": "trace", "path": lengths, "repeat": True},
        }
    )
    facts = describe_plan(scenario, build(scenario))
    assert facts["output_tokens"]["n"] == 7 and facts["output_tokens"]["max"] == 276
    assert facts["notes"] == ["b.csv: left out 1 of 4 requests that failed when recorded (0 response tokens)"]


@pytest.mark.parametrize(
    ("name", "count", "span_s", "prompt_tokens", "reply_tokens", "gap_cv", "hits"),
    [
        ("conversation", 12_031, 3537.0, 12_035, 342.6, 3.03, 0.366),
        ("synthetic", 3_993, 1022.0, 15_326, 149.1, 1.01, 0.640),
    ],
)
def test_the_real_mooncake_traces_read_as_published(
    name: str,
    count: int,
    span_s: float,
    prompt_tokens: float,
    reply_tokens: float,
    gap_cv: float,
    hits: float,
) -> None:
    path = TRACES / f"mooncake_fast25_{name}.jsonl.gz"
    if not path.exists():
        pytest.skip("the Mooncake traces are not beside this checkout")
    trace = read_recording(path)
    assert len(trace.times_s) == count and trace.times_s[-1] == pytest.approx(span_s, abs=0.1)
    assert trace.context_tokens.mean() == pytest.approx(prompt_tokens, abs=1)
    assert trace.generated_tokens.mean() == pytest.approx(reply_tokens, abs=0.05)
    gaps_s = np.diff(trace.times_s)
    assert gaps_s.std() / gaps_s.mean() == pytest.approx(gap_cv, abs=0.005)
    # Stated per block there, per token here: the last, partial blocks weigh less.
    assert trace.repeated_share == pytest.approx(hits, abs=0.012)
    requests = take(TraceSource(trace.context_tokens, trace.generated_tokens, blocks=trace.blocks), 40)
    assert trace.blocks is not None
    for k in (1, 7, 39):
        same = [a == b for a, b in zip(trace.blocks[0], trace.blocks[k], strict=False)]
        shared = same.index(False) if False in same else len(same)
        wanted = min(512 * shared, requests[0].body["prompt_tokens"], requests[k].body["prompt_tokens"])
        assert common_tokens(requests[0], requests[k]) == pytest.approx(wanted, abs=6)
        assert math.isclose(requests[k].body["prompt_tokens"], trace.context_tokens[k], abs_tol=1)
