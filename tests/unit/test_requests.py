"""Requests of files and made-up ones; bad files are refused with a line."""

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from scenarios.errors import TraceError
from scenarios.serving_specs import RequestsSpec, ServingSpec
from tests.shared import shared_file
from traces.requests import RequestTrace, made_up, read_requests, requests_of

AZURE = (
    "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:17:03.9799600,374,44\n2023-11-16 18:17:04.0319600,396,109\n"
)
MOONCAKE = (
    '{"timestamp": 1000, "input_length": 6755, "output_length": 500, "hash_ids": [0, 1]}\n'
    '{"timestamp": 4000, "input_length": 7319, "output_length": 490, "hash_ids": [0]}\n'
)
BURST = (
    "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
    "5,ChatGPT,472,18,490,Conversation log\n45,ChatGPT,1087,0,1087,API log\n118,GPT-4,417,276,693,API log\n"
)
PLAIN = "arrival_s,input_tokens,output_tokens\n0.5,10,3\n0.5,20,1\n"


@pytest.mark.parametrize(
    ("text", "arrivals", "inputs", "outputs"),
    [
        (AZURE, [0, 0.052], [374, 396], [44, 109]),
        (MOONCAKE, [0, 3], [6755, 7319], [500, 490]),
        (BURST, [0, 113], [472, 417], [18, 276]),
        (PLAIN, [0, 0], [10, 20], [3, 1]),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_formats(tmp_path: Path, text: str, arrivals: Any, inputs: Any, outputs: Any, packed: bool) -> None:
    path = tmp_path / ("requests.gz" if packed else "requests")
    path.write_bytes(gzip.compress(text.encode()) if packed else text.encode())
    got = read_requests(path)
    np.testing.assert_allclose(got.arrival_s, arrivals, atol=1e-6)
    assert got.input_tokens.tolist() == inputs
    assert got.output_tokens.tolist() == outputs


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no request"),
        ("a,b\n1,2\n", "columns of no format known"),
        (PLAIN + "0.1,5,5\n", "request 2 arrives at -0.4 s"),
        (PLAIN + "1.0,0,5\n", "request 2 has 0 input_tokens"),
        (PLAIN + "1.0,x,5\n", r":4: not a request"),
        (PLAIN + "nan,5,5\n", "request 2 arrives at nan"),
        (PLAIN + "1.0,5\n", ":4: not a request"),
        ("arrival_s,input_tokens,output_tokens\n-1,5,5\n", ":2: arrives at -1 s; times begin at 0"),
        ("ContextTokens,GeneratedTokens,TIMESTAMP\n4,4\n", ":2: not a request"),
        (PLAIN + "1.0,5,-5\n", ":4: has 5 and -5 tokens; give 1 to"),
        (PLAIN + "1.0,5,5000000000\n", ":4: has 5 and 5000000000 tokens"),
        ('{"timestamp": 0, "input_length": 1.5, "output_length": 2}\n', "1.5 is no whole number"),
        ('{"timestamp": 0, "input_length": 1, "output_length": Infinity}\n', ":1: not a request"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:17:03.9e9,4,4\n", ":2: not a request"),
        ('{"timestamp": 1,\n', ":1: not a line of JSON"),
        ('{"timestamp": 0, "input_length": [1], "output_length": 2}\n', ":1: not a request"),
        (MOONCAKE + "[]\n", ":3: a request must be an object"),
        ('{"a":' * 100_000, ":1: not a line of JSON"),
    ],
)
def test_bad_files(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "requests.csv"
    path.write_text(text)
    with pytest.raises(TraceError, match=words):
        read_requests(path)


def test_what_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(bytes(range(256)))
    (tmp_path / "b.gz").write_bytes(gzip.compress(PLAIN.encode())[:-9])
    for name in ("a.csv", "b.gz", "missing.csv"):
        with pytest.raises(TraceError, match="cannot be read"):
            read_requests(tmp_path / name)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "n", "inputs", "outputs"),
    [
        ("azure2023/AzureLLMInferenceTrace_conv.csv.gz", 19366, 1155, 211),
        ("azure2023/AzureLLMInferenceTrace_code.csv.gz", 8819, 2048, 28),
        ("mooncake/conversation_trace.jsonl.gz", 12031, 12035, 343),
    ],
)
def test_public_traces_have_their_known_means(name: str, n: int, inputs: int, outputs: int) -> None:
    got = read_requests(shared_file(f"data/arrivals/{name}"))
    assert len(got) == n
    assert round(got.input_tokens.mean()) == inputs
    assert round(got.output_tokens.mean()) == outputs
    assert 3400 < got.arrival_s[-1] < 3600


@pytest.mark.parametrize(("arrivals", "cv"), [("poisson", 1.0), ("gamma", 2.0), ("even", 0.0)])
def test_made_up_requests_have_the_moments_asked_for(arrivals: str, cv: float) -> None:
    spec = RequestsSpec.model_validate(
        {"requests_per_s": 5, "n": 20_000, "arrivals": arrivals, "input_tokens": 800, "output_tokens": 100}
    )
    got = made_up(spec, np.random.default_rng(0))
    gaps = np.diff(got.arrival_s)
    assert gaps.mean() == pytest.approx(0.2, rel=0.05)  # 20,000 draws: gamma's mean has 1.4 % standard error
    assert gaps.std() / gaps.mean() == pytest.approx(cv, rel=0.08, abs=1e-9)
    assert got.input_tokens.mean() == pytest.approx(800, rel=0.03)
    assert got.output_tokens.std() / got.output_tokens.mean() == pytest.approx(0.8, rel=0.05)


def test_requests_of_a_file_come_faster_and_fewer(tmp_path: Path) -> None:
    (tmp_path / "r.csv").write_text(AZURE)
    spec = RequestsSpec.model_validate({"file": "r.csv", "speed": 2})
    np.testing.assert_allclose(requests_of(spec, tmp_path, 0).arrival_s, [0, 0.026], atol=1e-6)
    assert len(requests_of(spec.model_copy(update={"first": 1}), tmp_path, 0)) == 1
    (tmp_path / "r.csv").write_text(AZURE + "what comes after is not read\n")
    assert len(requests_of(spec.model_copy(update={"first": 2}), tmp_path, 0)) == 2


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"requests": {}}, "either file"),
        ({"requests": {"file": "a", "requests_per_s": 1}}, "either file"),
        ({"requests": {"requests_per_s": 1}, "slo": {}}, "give ttft"),
        ({"requests": {"requests_per_s": 1}, "slo": {"ttft": 2}}, "no unit"),
        ({"requests": {"requests_per_s": 1}, "token_budget": 64}, "below max_requests"),
        ({"requests": {"requests_per_s": -1}}, "greater than 0"),
    ],
)
def test_contradictions_are_refused(spec: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        ServingSpec.model_validate(spec)


def test_a_trace_needs_requests() -> None:
    with pytest.raises(TraceError, match="no request"):
        RequestTrace(arrival_s=np.array([]), input_tokens=np.array([]), output_tokens=np.array([]), source="none")
