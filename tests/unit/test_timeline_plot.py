"""Pictures of schedules: bars lie where the log says, on one time axis."""

import ast
from dataclasses import replace
from pathlib import Path

import numpy as np

from sim.log import OpTimes
from sim.pipeline_plot import draw_pipelines
from sim.pipelines.pipeline import StageBar
from sim.program import Work
from sim.result import RunResult
from sim.timeline_plot import timelines_figure
from tests.fake_results import fake_comparison

DOCS = Path(__file__).resolve().parents[2] / "docs"


def op(kind: str, lane: str, begin_s: float, end_s: float, chunk: int = -1) -> OpTimes:
    begins, ends = np.array([0.0, begin_s]), np.array([0.0, end_s])
    return OpTimes(work=Work(kind, 0, chunk), lane=lane, begin_s=begins, busy_s=ends - begins, end_s=ends)


def result(*log: OpTimes) -> RunResult:
    return replace(fake_comparison().tables[0].results[0], log=log)


def test_bars_lie_where_the_log_says_and_overlapping_exchanges_take_rows_of_their_own() -> None:
    slow = result(op("experts", "compute", 0, 4e-3))
    fast = result(
        op("experts", "compute", 0, 1e-3),
        op("combine", "exchange", 1e-3, 3e-3, 0),
        op("combine", "exchange", 2e-3, 4e-3, 1),
    )
    figure = timelines_figure([("slow", slow), ("fast", fast)])
    above, below = figure.axes
    assert above.get_xlim() == below.get_xlim()
    bars = [(bar.get_x(), round(bar.get_x() + bar.get_width(), 9), bar.get_y() + 0.4) for bar in below.patches]
    assert bars == [(0.0, 1.0, 0.0), (1.0, 3.0, 1.0), (2.0, 4.0, 2.0)]
    assert [label.get_text() for label in below.get_yticklabels()] == ["compute", "exchange", ""]


def test_every_picture_is_drawn() -> None:
    tree = ast.parse((DOCS / "timelines.py").read_text())
    calls = [
        node for node in ast.walk(tree) if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("Picture")
    ]
    names = [key.value.value for call in calls for key in call.keywords if key.arg == "name"]  # type: ignore[attr-defined]
    assert names
    assert [name for name in names if not (DOCS / "images" / f"schedule-{name}.png").exists()] == []


def test_bars_of_a_pipeline_lie_where_its_stages_work() -> None:
    """Two stages, one microbatch: each colour covers its passes; the title says what the stages wait."""
    forward = StageBar(stage=0, passes=(("forward", 0, False),), begin_s=0.0, end_s=1e-3)
    pair = StageBar(stage=1, passes=(("forward", 0, False), ("backward", 3, True)), begin_s=1e-3, end_s=4e-3)
    (axes,) = draw_pipelines([("two stages", (forward, pair))], 7.2).axes
    spans = [
        sorted((path.vertices[:, 0].min(), path.vertices[:, 0].max()) for path in collection.get_paths())
        for collection in axes.collections
    ]
    assert spans == [[(0.0, 1.0), (1.0, 4.0)], [(1.0, 4.0)]]
    assert axes.get_title(loc="right") == "step: 4.000 ms, bubbles 50.0%"
