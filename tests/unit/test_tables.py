from dataclasses import replace

import pytest

from sim import wording
from sim.result import Table
from sim.tables import comparison_table, metrics_table, plain_text, shown_metric
from tests.fake_results import fake_comparison, fake_result, fake_table


def lines_of(table: Table) -> list[str]:
    return [line for line in plain_text(comparison_table(table)).splitlines() if line]


def test_the_ranked_table_holds_every_number() -> None:
    # Step times of 1, 1.1 and 1.21 ms; 4 devices x 64 tokens; the second plan is the baseline.
    table = fake_comparison().tables[0]
    assert lines_of(table) == [
        "decode, 64 tokens per device",
        "                step                     imbalance  devices  hidden  memory",
        "#  plan         [ms]  tokens/s    gain  fit→judged   /token   comm.   [GiB]",
        "───────────────────────────────────────────────────────────────────────────",
        "1  greedy      1.000   256,000  +10.0%   1.05→1.20     4.50   25.0%     6.5",
        "2  contiguous  1.100   232,727       -   1.15→1.30     4.50   25.0%     6.5",
        "3  random      1.210   211,570   -9.1%   1.25→1.40     4.50   25.0%     6.5",
    ]


def test_the_share_across_nodes_is_shown_where_there_are_several() -> None:
    table = fake_comparison(n_devices=16).tables[0]
    assert "50.0%" in lines_of(table)[-1]
    assert "cross" in lines_of(table)[1]
    assert "cross" not in lines_of(fake_comparison().tables[0])[1]


def test_long_names_fold_and_nothing_is_wider_than_80_characters() -> None:
    names = tuple(f"eplb+{rank} hierarchical, chunked x{rank} (maxmin), DP32 TP1 EP32" for rank in range(40))
    table = fake_comparison(names=names, n_devices=320).tables[0]
    lines = lines_of(table)
    assert max(map(len, lines)) <= 80
    assert "…" not in "".join(lines)
    assert [words[0] for words in map(str.split, lines) if words[0].isdigit()] == [str(n) for n in range(1, 41)]


def test_columns_give_way_to_whole_words_of_names() -> None:
    table = fake_comparison(names=("contiguous, sequential", "eplb+16, two-batch-decode-of-prefill"), n_devices=16)
    lines = lines_of(table.tables[0])
    assert "two-batch-decode-of-prefill" in " ".join(lines)
    assert not {"cross", "devices"} & set(lines[1].split())
    assert "memory" in lines[1]
    assert max(map(len, lines)) <= 80


def test_names_are_text_and_not_markup() -> None:
    names = ("[red]bold[/red]", "two\nlines \x1b[31m")
    text = plain_text(comparison_table(fake_comparison(names=names).tables[0]))
    assert "[red]bold[/red]" in text
    assert r"two lines \x1b[31m" in text


def test_metrics_that_are_missing_leave_their_column_out() -> None:
    result = fake_result("only", 0, 4, 3)
    for name in ("load_imbalance", "devices_per_token", "hidden_comm_frac", "memory_bytes.peak"):
        del result.metrics[name]
    assert lines_of(fake_table((result,)))[-1].split() == ["1", "only", "1.000", "256,000", "-"]


def test_the_metrics_table_names_every_metric_and_the_shares_sum_up() -> None:
    result = fake_comparison().tables[0].results[0]
    lines = [line.split() for line in plain_text(metrics_table(result)).splitlines()]
    names = {words[0] for words in lines if words}
    assert names >= set(result.metrics) | {f"breakdown_s.{cause}" for cause in result.breakdown_s}
    assert ["step_time_s", "1.000", "ms"] in lines
    assert ["breakdown_s.attention", "300.0", "µs", "30.0%"] in lines
    shares = [float(words[-1].rstrip("%")) for words in lines if words and words[0].startswith("breakdown_s.")]
    assert sum(shares) == pytest.approx(100)


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("step_time_s.p99", 0.0000123456, "12.35 µs"),
        ("ttft_s.p50", 2.5, "2.500 s"),
        ("tokens_per_s_per_device", 14417.29, "14,417 /s"),
        ("tokens_per_s", 3.14159, "3.142 /s"),
        ("hidden_comm_frac", 0.1234, "12.3%"),
        ("bytes.nvlink", 435367253.3, "435 MB"),
        ("memory_bytes.peak", 6.5 * 2**30, "6.50 GiB"),
        ("load_imbalance.fit", 1.01410, "1.014"),
    ],
)
def test_metrics_are_shown_in_the_unit_that_their_name_states(name: str, value: float, text: str) -> None:
    assert shown_metric(name, value) == text


def test_no_minus_zero() -> None:
    assert wording.shown_percent(-0.0004, signed=True) == "+0.0%"
    assert wording.shown_percent(-0.0006, signed=True) == "-0.1%"
    assert wording.shown_percent(0.0) == "0.0%"


def test_zero_has_a_unit() -> None:
    assert wording.shown_time(0.0) == "0 µs"
    assert wording.shown_bytes(0) == "0 B"


def test_the_answer_names_the_winner_and_its_gain() -> None:
    best, first, last = fake_comparison().tables[0].results
    title = "(decode, 64 tokens per device)"
    assert wording.answer(fake_table((best, first))) == f"greedy is fastest: +10.0% tokens/s over contiguous {title}"
    assert wording.answer(fake_table((best,))) == f"greedy: 1.000 ms per step, 256,000 tokens/s {title}"
    winning = replace(fake_table((best, first, last)), first="greedy")
    assert (
        wording.answer(winning) == f"greedy, the baseline, is fastest: contiguous takes 10.0% longer per token {title}"
    )
