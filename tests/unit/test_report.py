import base64
import hashlib
import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure

from scenarios.errors import MoesimError
from sim import plots
from sim.figure import png_bytes, svg_bytes
from sim.outputs import json_text, write_outputs
from sim.page.charts import INTERACTIVE, charts_of
from sim.plot_data import (
    KIND_COLORS,
    device_ticks,
    distinct_plans,
    gantt_boxes,
    gantt_devices,
    kind_color,
    kinds_in_order,
    layer_ticks,
)
from sim.report import Picture, render_report
from sim.result import Comparison
from sim.timeline import middle_window
from tests.fake_results import fake_comparison, fake_of, fake_result, fake_table

PICTURE = Picture(name="step-time", svg=b"<svg/>", png=b"png")
EVIL = "<script>alert('x')</script> & \"co\""


def page(comparison: Comparison) -> str:
    return render_report(comparison, [[PICTURE] for _ in comparison.tables])


def many(n_plans: int, n_devices: int = 4) -> Comparison:
    return fake_comparison(names=tuple(f"plan {rank}" for rank in range(n_plans)), n_devices=n_devices)


def titles(figure: Figure) -> list[str]:
    return [axes.get_title(loc="left") for axes in figure.axes if axes.get_title(loc="left")]


# The page


def test_the_page_states_the_answer_and_every_number() -> None:
    html = page(fake_comparison())
    assert "greedy is fastest: +10.0% tokens/s over contiguous (decode, 64 tokens per device)." in html
    for text in ("fake scenario", "toy-model", "2 x toy-node", "256,000", "-9.1%", "1.15→1.30", "300.0 µs (30.0%)"):
        assert text in html
    for text in ("1.41e+11", "toy &lt;datasheet&gt;, page 3", "0123456789abcdef", "1 datasheet, 1 assumed"):
        assert text in html
    for name in fake_comparison().tables[0].results[0].metrics:
        assert f"<code>{name}</code>" in html


def test_everything_from_outside_is_escaped() -> None:
    comparison = fake_comparison(names=(EVIL, "contiguous"))
    html = page(comparison)
    assert EVIL not in html
    assert EVIL.replace('"', '\\"') not in html
    assert html.count("&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt; &amp; &#34;co&#34;") >= 3
    assert "toy &amp; Co" in html


def scripts_of(html: str) -> list[tuple[str, str]]:
    """Attributes and text of every script of a page."""
    return re.findall(r"<script([^>]*)>(.*?)</script>", html, re.DOTALL)


def test_the_page_needs_no_network_and_runs_its_own_scripts_alone() -> None:
    html = page(fake_comparison())
    own = html
    for _, text in scripts_of(html):
        own = own.replace(text, "")
    assert re.findall(r'(?:src|href)="(?!data:)', own) == []
    assert "url(" not in own
    assert "http://" not in own
    assert "https://" not in own
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', html)
    assert policy is not None
    assert policy[1].startswith("default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-")
    running = [text for kind, text in scripts_of(html) if "application/json" not in kind]
    digests = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in running]
    assert policy[1].partition("script-src ")[2].split() == [f"'sha256-{digest}'" for digest in digests]


def test_the_library_of_charts_is_the_one_that_the_document_names() -> None:
    script = (Path(__file__).parents[2] / "sim/page/echarts.min.js").read_bytes()
    document = (Path(__file__).parents[2] / "docs/reference/report.md").read_text()
    assert f"sha256 `{hashlib.sha256(script).hexdigest()}`" in document
    assert re.findall(rb'version="([0-9.]+)"', script)[0].decode() in document


def test_charts_show_what_the_results_hold() -> None:
    table = fake_comparison(n_devices=4, n_layers=3).tables[0]
    chart = charts_of(table, plots.figure_names(table), 10**6)
    assert chart["plans"] == ["greedy", "contiguous (baseline)", "random"]
    assert (chart["shown"], chart["left_out"]) == ([0, 1], 0)
    best = table.results[0]
    lanes = chart["timeline"]["values"][0]
    assert (lanes["devices"], lanes["rows"]) == ([0, 1, 2, 3], ["compute", "exchange"])
    for device in range(4):
        for op, begin, busy, waiting in zip(best.log, *lanes["times"][device], strict=True):
            expected = (op.begin_s, op.busy_s, op.end_s - op.begin_s - op.busy_s)
            assert (begin, busy, waiting) == pytest.approx([1e9 * times[device] for times in expected], abs=500)
    shares = np.array(chart["device-load"]["values"][0]["share"])
    np.testing.assert_allclose(shares, (best.device_tokens / best.device_tokens.mean(axis=1)[:, None]).T, atol=6e-4)
    np.testing.assert_allclose(chart["traffic"]["values"][0], best.traffic_bytes, rtol=1e-3)
    busy_s = np.array(chart["links"]["values"][0]["busy_s"])
    np.testing.assert_allclose(busy_s, best.port_loads.busy_s.reshape(2, 4), rtol=1e-3)


def test_of_many_plans_and_devices_the_page_draws_what_it_can_carry() -> None:
    table = many(9, n_devices=128).tables[0]
    chart = charts_of(table, plots.figure_names(table), 100_000)
    assert chart["plans"][:2] == ["plan 0", "plan 1 (baseline)"]
    assert chart["left_out"] == 9 - len(chart["plans"]) > 0
    assert len(chart["timeline"]["values"][0]["devices"]) == 32
    nodes = np.array(chart["traffic"]["values"][0])
    assert nodes.shape == (16, 16)
    assert nodes.sum() == pytest.approx(table.results[0].traffic_bytes.sum(), rel=1e-3)


def test_light_pictures_are_drawn_as_svg_and_heavy_ones_as_png() -> None:
    assert PICTURE.data_uri() == "data:image/svg+xml;base64,PHN2Zy8+"
    heavy = Picture(name="traffic", svg=b" " * 200_000, png=b"png")
    assert heavy.data_uri() == "data:image/png;base64,cG5n"


def test_every_workload_has_its_section_and_answer() -> None:
    results = fake_comparison().tables[0].results
    html = page(fake_of(fake_table(results, "decode, 8"), fake_table(results, "prefill, 9")))
    for title in ("decode, 8", "prefill, 9"):
        assert f">{title}</h2>" in html
        assert f"over contiguous ({title})." in html


def test_assumed_constants_come_first() -> None:
    html = page(fake_comparison())
    assert html.index("toy latency_s") < html.index("toy memory_bytes")


# JSON


def test_the_result_file_has_the_documented_keys() -> None:
    comparison = fake_comparison()
    content = json.loads(json_text(comparison))
    assert content["moesim"] == "0.1.0"
    assert content["scenario"] == "fake scenario"
    assert [entry["name"] for entry in content["results"]] == ["greedy", "contiguous", "random"]
    for entry, result in zip(content["results"], comparison.tables[0].results, strict=True):
        assert entry["metrics"] == result.metrics
        assert entry["plan"] == result.plan
        assert {"step_time_s", "tokens_per_s", "load_imbalance", "memory_bytes.peak"} <= entry["metrics"].keys()


def test_numpy_numbers_become_plain_ones() -> None:
    result = replace(fake_result("a", 0, 4, 3), plan={"slots": np.int64(3), "loads": np.array([1.5, 2.0])})
    content = json.loads(json_text(fake_of(fake_table((result,)))))
    assert content["results"][0]["plan"] == {"slots": 3, "loads": [1.5, 2.0]}


def test_a_number_that_json_cannot_hold_is_an_error() -> None:
    comparison = fake_comparison()
    comparison.tables[0].results[0].metrics["load_imbalance"] = float("nan")
    with pytest.raises(ValueError, match="not JSON compliant"):
        json_text(comparison)


# The folder


def test_a_file_in_the_way_of_the_folder_is_named(tmp_path: Path) -> None:
    path = tmp_path / "out"
    path.write_text("mine")
    with pytest.raises(MoesimError) as caught:
        write_outputs(fake_comparison(), path)
    assert str(caught.value) == f"{path}: a file is in the way; give the path of a folder"
    with pytest.raises(MoesimError, match="a file is in the way"):
        write_outputs(fake_comparison(), path / "below")
    assert path.read_text() == "mine"


@pytest.mark.slow
def test_the_folder_is_made_and_written_the_same_way_each_time(tmp_path: Path) -> None:
    comparison = fake_comparison(names=("greedy", f"$x_ {EVIL} 名"), n_devices=16)
    written = [write_outputs(comparison, tmp_path / name / "below") for name in ("a", "b")]
    names = [path.relative_to(tmp_path / "a/below").as_posix() for path in written[0]]
    figures = [f"plots/{name}{suffix}" for name in plots.FIGURES for suffix in (".svg", ".png")]
    assert names == ["report.html", "result.json", "timeline.json.gz", *figures]
    assert sorted(names) == sorted(
        path.relative_to(tmp_path / "a/below").as_posix() for path in (tmp_path / "a").rglob("*") if path.is_file()
    )
    for first, second in zip(*written, strict=True):
        assert first.read_bytes() == second.read_bytes()
    html = written[0][0].read_text()
    assert html.count("<figure ") == len(plots.FIGURES)
    assert html.count("<img alt=") == len(plots.FIGURES) - len(INTERACTIVE)
    assert "<script>alert" not in html


@pytest.mark.slow
def test_a_large_comparison_makes_a_page_below_3_mb(tmp_path: Path) -> None:
    names = tuple(f"plan {rank}" for rank in range(12))
    write_outputs(fake_comparison(names=names, n_devices=320, n_layers=94), tmp_path)
    assert (tmp_path / "report.html").stat().st_size < 3e6


@pytest.mark.slow
def test_matplotlib_is_imported_only_to_draw() -> None:
    code = "import sim.outputs, sim.tables, sys; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], check=False).returncode == 0


# Figures


def test_the_step_time_figure_has_a_bar_a_plan_and_cause() -> None:
    table = fake_comparison().tables[0]
    axes: Any = plots.step_time_figure(table).axes[0]
    assert len(axes.patches) == 3 * 5
    ends = sorted({round(bar.get_x() + bar.get_width(), 9) for bar in axes.patches[-3:]})
    assert ends == pytest.approx([1.0, 1.1, 1.21])
    assert [label.get_text() for label in axes.get_yticklabels()] == ["greedy", "contiguous", "random"]
    texts = [text.get_text() for text in axes.texts]
    assert "1.000   +10.0%" in texts
    assert "1.100   baseline" in texts
    assert "(ms)" in axes.get_xlabel()


def test_long_names_take_two_lines_and_keep_their_end() -> None:
    name = "eplb+32 with a very long description of what it does and does not do, chunked x4"
    axes = plots.step_time_figure(fake_comparison(names=(name, "b")).tables[0]).axes[0]
    lines = axes.get_yticklabels()[0].get_text().split("\n")
    assert len(lines) == 2
    assert max(map(len, lines)) <= 30
    assert lines[0].startswith("eplb+32 with")
    assert lines[1].endswith("chunked x4")


def test_the_load_figure_shows_loads_over_their_mean_on_one_scale() -> None:
    table = many(6).tables[0]
    figure = plots.device_load_figure(table)
    assert titles(figure) == ["plan 0", "plan 1 (baseline)", "plan 2", "plan 3"]
    images: list[Any] = [axes.images[0] for axes in figure.axes if axes.images]
    assert len({id(image.norm) for image in images}) == 1
    assert images[0].norm(1.0) == 0.5
    tokens = table.results[0].device_tokens
    np.testing.assert_allclose(images[0].get_array(), (tokens / tokens.mean(axis=1, keepdims=True)).T)


def test_plans_of_equal_load_share_a_panel_and_the_baseline_stands_for_its_like() -> None:
    best, first, last = fake_comparison().tables[0].results
    table = fake_table((replace(best, device_tokens=first.device_tokens), first, last))
    panels = distinct_plans(table, lambda result: result.device_tokens)
    assert [(panel.result.name, panel.n_alike) for panel in panels] == [("contiguous", 1), ("random", 0)]


def test_the_baseline_has_a_panel_however_far_down_it_ranks() -> None:
    table = many(6).tables[0]
    last = replace(table, first="plan 5")
    panels = distinct_plans(last, lambda result: result.device_tokens, 4)
    assert [panel.result.name for panel in panels] == ["plan 0", "plan 1", "plan 2", "plan 5"]


def test_the_traffic_figure_masks_the_diagonal_and_marks_the_nodes() -> None:
    table = fake_comparison(n_devices=16).tables[0]
    figure = plots.traffic_figure(table)
    assert titles(figure) == ["greedy", "contiguous (baseline)"]
    shown: Any = figure.axes[0].images[0].get_array()
    lines: Any = figure.axes[0].lines
    assert np.ma.getmaskarray(shown).tolist() == np.eye(16, dtype=bool).tolist()
    assert shown[0, 1] == pytest.approx(table.results[0].traffic_bytes[0, 1] / 1e6)
    assert {tuple(line.get_xdata()) for line in lines} == {(7.5, 7.5), (0, 1)}


@pytest.mark.slow
def test_square_panels_lie_within_the_picture() -> None:
    figure = plots.traffic_figure(fake_comparison(n_devices=16).tables[0])
    svg_bytes(figure)
    figure.set_dpi(72)
    used, (width, height) = figure.get_tightbbox(), figure.get_size_inches()
    assert 0 <= used.x0 < used.x1 <= width
    assert 0 <= used.y0 < used.y1 <= height


def test_the_imbalance_figure_names_the_best_plans_and_greys_the_rest() -> None:
    table = many(20).tables[0]
    figure = plots.imbalance_figure(table)
    assert len(figure.axes[0].lines) == 20
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels[:3] == ["plan 0", "plan 1 (baseline)", "plan 2"]
    assert labels[-1] == "13 other plans"
    np.testing.assert_array_equal(figure.axes[0].lines[0].get_ydata(), table.results[0].layer_imbalance)


def test_the_distribution_figure_states_median_and_p99() -> None:
    result = replace(fake_result("a", 0, 4, 3), step_times_s=np.linspace(1e-3, 2e-3, 101))
    axes: Any = plots.step_distribution_figure(fake_table((result,))).axes[0]
    (box,) = axes.patches
    assert (box.get_x(), box.get_x() + box.get_width()) == pytest.approx((1.25, 1.75))
    assert axes.texts[0].get_text() == "1.500   p99 1.990"
    assert "101 steps" in axes.get_xlabel()


def test_the_timeline_figure_draws_two_layers_of_two_plans() -> None:
    table = fake_comparison(n_devices=4, n_layers=6).tables[0]
    figure = plots.timeline_figure(table)
    assert titles(figure) == ["greedy", "contiguous (baseline)"]
    assert figure.axes[0].get_title(loc="right") == "MoE layers 3 and 4 of step 0"
    bars: Any = [c for c in figure.axes[0].collections if isinstance(c, PolyCollection)]
    experts = next(c for c in bars if tuple(c.get_facecolor()[0]) == mpl.colors.to_rgba(KIND_COLORS["experts"]))
    assert len(experts.get_paths()) == 2 * 4
    limits = {axes.get_xlim() for axes in figure.axes}
    assert len(limits) == 1


def test_bars_of_a_device_sum_up_to_its_times() -> None:
    result = fake_result("a", 0, 3, 4)
    window = middle_window(result.log)
    boxes = gantt_boxes(result, window, [0, 1, 2])
    inside = [op for op in result.log if op.work.layer in window.layers]
    drawn_s = sum(box[1, 0] - box[0, 0] for kind in boxes for box in boxes[kind])
    assert drawn_s == pytest.approx(sum((op.end_s - op.begin_s).sum() for op in inside))
    assert {kind for kind, found in boxes.items() if found} == {
        "attention",
        "dispatch",
        "experts",
        "combine",
        "waiting",
    }


def test_of_many_devices_the_busiest_is_among_those_drawn() -> None:
    result = fake_result("a", 0, 320, 4)
    window = middle_window(result.log)
    devices = gantt_devices(result, window)
    work_s = sum(op.busy_s for op in result.log if op.work.layer in window.layers)
    assert len(set(devices)) == 16
    assert int(np.argmax(work_s)) in devices
    assert devices == sorted(devices)


@pytest.mark.parametrize("name", list(plots.FIGURES))
@pytest.mark.parametrize(("n_plans", "n_devices", "n_layers"), [(1, 8, 1), (2, 2, 2), (2, 8, 40)])
def test_every_figure_can_be_made_at_the_edges(name: str, n_plans: int, n_devices: int, n_layers: int) -> None:
    names = tuple(f"plan {rank}" for rank in range(n_plans))
    table = fake_comparison(names=names, n_devices=n_devices, n_layers=n_layers).tables[0]
    assert name in plots.figure_names(table)
    assert plots.FIGURES[name](table).axes


def test_figures_with_nothing_to_show_are_left_out() -> None:
    alone = fake_table((replace(fake_result("a", 0, 1, 3), stages=()),))
    assert plots.figure_names(alone) == ["step-time", "timeline", "step-distribution"]
    unlogged = fake_table((replace(fake_result("a", 0, 4, 3), log=()),))
    assert "timeline" not in plots.figure_names(unlogged)


def test_drawing_changes_no_setting_of_matplotlib() -> None:
    before = dict(mpl.rcParams)
    png_bytes(plots.step_time_figure(fake_comparison().tables[0]), dpi=50)
    assert dict(mpl.rcParams) == before


def test_kinds_keep_their_colour_and_order() -> None:
    assert kinds_in_order(["waiting", "new kind", "experts", "transfer", "attention"]) == [
        "attention",
        "experts",
        "new kind",
        "transfer",
        "waiting",
    ]
    assert kind_color("new kind") == kind_color("new kind") != kind_color("experts")
    work = [color for kind, color in KIND_COLORS.items() if kind != "transfer"]
    assert len(set(work)) == len(work)


def test_ticks_are_round() -> None:
    assert layer_ticks(range(1, 27)) == [place for place in range(26) if (place + 1) % 2 == 0]
    assert [range(3, 61)[place] for place in layer_ticks(range(3, 61))] == list(range(5, 61, 5))
    assert layer_ticks((7,)) == [0]
    assert device_ticks(320, 5) == [0, 64, 128, 192, 256]
    assert device_ticks(1, 5) == [0]
