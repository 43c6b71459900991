import gzip
import json
from collections import defaultdict
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from sim.log import OpTimes
from sim.result import RunResult
from sim.timeline import contrasted, lane_rows, middle_window, trace_events, write_trace
from tests.fake_results import fake_comparison, fake_of, fake_op, fake_result, fake_table


def op(kind: str, layer: int, begin: list[float], busy: list[float], end: list[float], chunk: int = 0) -> OpTimes:
    return fake_op(kind, layer, np.array(begin), np.array(busy), np.array(end), chunk)


# Two devices, in seconds. The second dispatch begins while the first one still receives on device 1.
CHUNKED = (
    op("attention", 1, [0, 0], [1, 2], [1, 2]),
    op("dispatch", 1, [1, 2], [1, 1], [2, 4]),
    op("dispatch", 1, [2, 3], [1, 1], [4, 5], chunk=1),
    op("experts", 1, [2, 4], [2, 1], [4, 5]),
    op("combine", 1, [4, 5], [1, 1], [6, 6]),
)


def with_log(log: tuple[OpTimes, ...], name: str = "hand") -> RunResult:
    return replace(fake_result(name, 0, 2, 1), log=log)


def test_an_exchange_that_overlaps_another_takes_a_row_of_its_own() -> None:
    assert lane_rows(CHUNKED) == [0, 1, 2, 0, 1]


def test_an_exchange_that_follows_at_once_stays_in_its_row() -> None:
    log = (op("dispatch", 1, [0], [1], [2]), op("combine", 1, [2], [1], [3]))
    assert lane_rows(log) == [1, 1]


def test_the_window_holds_the_middle_layers() -> None:
    log = [op("experts", layer, [layer], [1], [layer + 1]) for layer in range(1, 8)]
    window = middle_window(log)
    assert (window.layers, window.begin_s, window.end_s) == ((3, 4), 3, 5)
    assert middle_window(log, n_layers=1).layers == (4,)
    assert middle_window(log[:1]).layers == (1,)


def test_without_experts_the_window_is_the_whole_step() -> None:
    window = middle_window([op("mlp", 0, [0], [1], [1]), op("mlp", 1, [1], [2], [3])])
    assert (window.layers, window.begin_s, window.end_s) == ((), 0, 3)


def test_events_of_a_hand_example() -> None:
    events = list(trace_events(fake_of(fake_table((with_log(CHUNKED),)))))
    names = [(e["pid"], e["args"]["name"]) for e in events if e["name"] == "process_name"]
    assert names == [(0, "hand, device 0"), (1, "hand, device 1")]
    threads = [e["args"]["name"] for e in events if e["name"] == "thread_name" and e["pid"] == 0]
    assert threads == ["compute", "exchange", "exchange, overlapping 2"]
    works = [e for e in events if e["ph"] == "X" and e["pid"] == 1]
    assert [(e["name"], e["tid"], e["args"]["chunk"]) for e in works] == [
        ("attention 1", 0, -1),
        ("dispatch 1", 1, 0),
        ("dispatch 1", 2, 1),
        ("experts 1", 0, 0),
        ("combine 1", 1, 0),
    ]
    assert [round(e["ts"]) for e in works] == [0, 2_000_000, 3_000_000, 4_000_000, 5_000_000]
    assert [e["dur"] for e in works] == [2e6, 2e6, 2e6, 1e6, 1e6]
    assert [e["args"]["waiting_us"] for e in works] == [0, 1e6, 1e6, 0, 0]


def test_as_readers_truncate_no_event_of_a_thread_overlaps_the_next() -> None:
    comparison = fake_comparison(n_devices=5, n_layers=7)
    by_thread = defaultdict(list)
    for event in trace_events(comparison):
        if event["ph"] == "X":
            by_thread[event["pid"], event["tid"]].append((int(event["ts"] * 1000), int(event["dur"] * 1000)))
    assert len(by_thread) == 2 * 5 * 2
    for spans in by_thread.values():
        assert all(begin + length <= after for (begin, length), (after, _) in pairwise(spans))
    last = max(begin + length for spans in by_thread.values() for begin, length in spans)
    slowest = max(op.end_s.max() for result in contrasted(comparison.tables[0]) for op in result.log)
    assert last == pytest.approx(slowest * 1e9, abs=2)


def test_computing_time_in_the_trace_is_that_of_the_log() -> None:
    comparison = fake_comparison(names=("one",), n_devices=3, n_layers=4)
    (result,) = comparison.tables[0].results
    total_us = sum(e["dur"] for e in trace_events(comparison) if e["ph"] == "X" and e["tid"] == 0)
    assert total_us == pytest.approx(sum(op.busy_s.sum() for op in result.log if op.lane == "compute") * 1e6, abs=0.1)


def test_rounding_noise_moves_no_event_before_its_predecessor() -> None:
    log = (op("attention", 1, [0], [1.4999e-9], [1.4999e-9]), op("experts", 1, [1.4999e-9 - 1e-18], [1e-9], [2.5e-9]))
    first, second = (e for e in trace_events(fake_of(fake_table((with_log(log),)))) if e["ph"] == "X")
    assert int(first["ts"] * 1000) + int(first["dur"] * 1000) <= int(second["ts"] * 1000)


def test_the_best_plan_is_shown_beside_the_baseline() -> None:
    best, first, last = fake_comparison().tables[0].results
    assert contrasted(fake_table((best, first, last))) == (best, first)
    assert contrasted(fake_table((best,))) == (best,)


def test_a_winning_baseline_is_shown_beside_the_second() -> None:
    best, second, _ = fake_comparison().tables[0].results
    assert contrasted(replace(fake_table((best, second)), first=best.name)) == (best, second)


def test_processes_of_several_workloads_are_told_apart() -> None:
    results = fake_comparison().tables[0].results
    comparison = fake_of(fake_table(results, "decode"), fake_table(results, "prefill"))
    names = {e["pid"]: e["args"]["name"] for e in trace_events(comparison) if e["name"] == "process_name"}
    assert len(names) == 2 * 2 * 4
    assert names[0] == "decode: greedy, device 0"
    assert names[15] == "prefill: contiguous, device 3"


def test_the_file_is_gzipped_json_and_the_same_each_time(tmp_path: Path) -> None:
    comparison = fake_comparison()
    for name in ("a", "b"):
        write_trace(comparison, tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    content = json.loads(gzip.decompress((tmp_path / "a").read_bytes()))
    assert content["displayTimeUnit"] == "ns"
    assert content["traceEvents"] == list(trace_events(comparison))


def test_a_begin_that_no_float_holds_is_not_truncated_into_its_predecessor() -> None:
    # 1.001 us is 1000.9999999999999 ns as a float, and the event before ends at 1001 ns.
    log = (op("attention", 1, [1e-9], [1000e-9], [1001e-9]), op("experts", 1, [1001e-9], [1e-9], [1002e-9]))
    begins_ns = [int(e["ts"] * 1000) for e in trace_events(fake_of(fake_table((with_log(log),)))) if e["ph"] == "X"]
    assert begins_ns == [1, 1001]
