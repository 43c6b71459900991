"""Requests of files and made-up ones; bad files are refused with a line."""

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from scenarios.errors import TraceError
from scenarios.serving_specs import RequestsSpec, ServingSpec
from tests.shared import shared_file
from traces.prefix_cache import PrefixCache
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
CACHED = "arrival_s,input_tokens,output_tokens,cached_tokens\n0,10,3,4\n"


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
        (PLAIN + "0.1,5,5\n", r"requests.csv:4: arrives 0.4 s before the request above it"),
        (PLAIN + "1.0,0,5\n", r"requests.csv:4: has 0 and 5 tokens"),
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
        (CACHED + "1,20,1,21\n", "request 1 has 21 cached_tokens of 20"),
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


@pytest.mark.slow
@pytest.mark.parametrize(("name", "share"), [("conversation", 0.366), ("synthetic", 0.640)])
def test_prefixes_of_mooncake_are_found_as_often_as_published(name: str, share: float) -> None:
    """Hit rates of an infinite cache by Mooncake's traces (FAST 25); the last block of a prompt is a short one."""
    path = shared_file(f"data/arrivals/mooncake/{name}_trace.jsonl.gz")
    got = read_requests(path, prefixes=PrefixCache(None))
    assert got.cached_tokens is not None
    assert got.cached_tokens.sum() / (np.ceil(got.input_tokens / 512) * 512).sum() == pytest.approx(share, abs=0.002)


@pytest.mark.parametrize("n_blocks", [None, 7, 30])
def test_a_cache_of_prefixes_is_a_list_of_blocks(n_blocks: int | None) -> None:
    """Against a plain list, the most recent block first; prompts are paths from the root of a small tree."""
    rng, cache, held = np.random.default_rng(1), PrefixCache(n_blocks), list[int]()
    for _ in range(300):
        blocks, node = [], 0
        for _ in range(int(rng.integers(1, 6))):
            node = 3 * node + int(rng.integers(1, 4))
            blocks.append(node)
        hits = next((i for i, block in enumerate(blocks) if block not in held), len(blocks))
        assert cache.visit(blocks) == hits
        held = (blocks + [block for block in held if block not in blocks])[:n_blocks]


def test_cached_tokens_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "r.csv").write_text(CACHED + "1,20,1,\n")
    (tmp_path / "m.jsonl").write_text(MOONCAKE)
    plain = read_requests(tmp_path / "r.csv").cached_tokens
    assert plain is not None and plain.tolist() == [4, 0]
    cached = requests_of(RequestsSpec.model_validate({"file": "m.jsonl", "prefix_cache": "unlimited"}), tmp_path, 0)
    assert cached.cached_tokens is not None and cached.cached_tokens.tolist() == [0, 512]
    with pytest.raises(TraceError, match="hash_ids"):
        requests_of(RequestsSpec.model_validate({"file": "r.csv", "prefix_cache": 1024}), tmp_path, 0)


def test_rates_change_when_they_say() -> None:
    """Even arrivals: the k-th request comes when k have been asked for; a pause, then five a second."""
    rates = [
        {"requests_per_s": 2, "until": "10 s"},
        {"requests_per_s": 0, "until": "20 s"},
        {"requests_per_s": 5},
    ]
    spec = {"rates": rates, "n": 25, "arrivals": "even"}
    got = requests_of(RequestsSpec.model_validate(spec), Path(), 0)
    np.testing.assert_allclose(got.arrival_s, [*np.arange(1, 21) / 2, *(20 + np.arange(1, 6) / 5)])


def servegen(folder: Path, client: int, rate: float, pattern: str) -> None:
    rows = [f"{begin},{rate},1.5,{pattern},0.5,7" for begin in (0, 600, 1200, 1800)]
    (folder / f"chunk-{client}-trace.csv").write_text("\n".join([*rows, "2400,0,0,,0,0\n"]))
    lengths = {
        begin: {"input_tokens": f"{{{10 + client}: 0.25, {20 + client}: 0.75}}", "output_tokens": f"{{{out}: 1.0}}"}
        for begin, out in (("0", 5), ("1200", 6))
    }
    (folder / f"chunk-{client}-dataset.json").write_text(json.dumps(lengths))


def test_clients_of_servegen(tmp_path: Path) -> None:
    servegen(tmp_path, 1, 1.0, "Gamma")
    servegen(tmp_path, 2, 2.0, "Weibull")
    got = requests_of(RequestsSpec.model_validate({"file": "."}), tmp_path, 0)
    # Gaps of variation 2 (gamma) and 5 (Weibull) of shape 0.5: 7200 requests, 5 % of standard error.
    assert len(got) == pytest.approx(2400 * 3, rel=0.15)
    second = np.isin(got.input_tokens, [12, 22])
    assert second.mean() == pytest.approx(2 / 3, abs=0.06)
    assert (got.input_tokens >= 20).mean() == pytest.approx(0.75, abs=0.02)
    assert set(got.output_tokens[got.arrival_s < 1100]) == {5} and set(got.output_tokens[got.arrival_s > 1201]) == {6}
    gaps = np.diff(got.arrival_s[~second])
    assert gaps.std() / gaps.mean() == pytest.approx(2**0.5, rel=0.1)  # 1 / sqrt(shape)
    assert len(requests_of(RequestsSpec.model_validate({"file": ".", "first": 50}), tmp_path, 0)) == 50
    (tmp_path / "chunk-1-dataset.json").write_text("{}")
    with pytest.raises(TraceError, match="has no lengths"):
        requests_of(RequestsSpec.model_validate({"file": "."}), tmp_path, 0)
    (tmp_path / "chunk-1-trace.csv").write_text("0,1,1,Pareto,1,1\n")
    with pytest.raises(TraceError, match="not Pareto"):
        requests_of(RequestsSpec.model_validate({"file": "."}), tmp_path, 0)
    (tmp_path / "empty").mkdir()
    with pytest.raises(TraceError, match="holds no clients"):
        requests_of(RequestsSpec.model_validate({"file": "empty"}), tmp_path, 0)


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
        ({"requests": {"requests_per_s": 1, "rates": [{"requests_per_s": 1}]}}, "either file"),
        ({"requests": {"rates": [{"requests_per_s": 1}, {"requests_per_s": 2}]}}, "every one but the last"),
        ({"requests": {"rates": [{"requests_per_s": 0}]}}, "never ends"),
        ({"requests": {"requests_per_s": 1, "prefix_cache": "unlimited"}}, "needs a file"),
        ({"requests": {"requests_per_s": 1}, "decode": {}}, "give prefill too"),
        ({"requests": {"requests_per_s": 1}, "prefill": {"token_budget": 64}}, "below max_requests"),
        ({"requests": {"requests_per_s": 1}, "prefill": {}, "batching": "static"}, "batching: static and prefill"),
    ],
)
def test_contradictions_are_refused(spec: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        ServingSpec.model_validate(spec)


def test_a_trace_needs_requests() -> None:
    with pytest.raises(TraceError, match="no request"):
        RequestTrace(arrival_s=np.array([]), input_tokens=np.array([]), output_tokens=np.array([]), source="none")
