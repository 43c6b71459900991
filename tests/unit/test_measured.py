"""Measured tables beside the laws: exact on their rows, interpolated between them, the law alone elsewhere."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hwmodels.attention import attention_decode_s, attention_prefill_s, windowed_context
from hwmodels.cluster import build_cluster
from hwmodels.devices import Device
from hwmodels.gemm import gemm_s
from hwmodels.measured_tables import NOTHING, Measured, MeasuredBlock, Surface, band_left_out, gemm_shape, surface_of
from hwmodels.moe import ExpertShape, grouped_gemm_moe_s
from hwmodels.validation.interpolation import thinned
from moesim.cli import main
from scenarios.cluster_specs import ClusterSpec
from scenarios.errors import HardwareError
from scenarios.models import GroupedQueryAttention, LatentAttention
from sim.bands import ENDS, device_at_end

MOE = "moe_dtype,num_tokens,hidden_size,inter_size,topk,num_experts,moe_tp_size,moe_ep_size,distribution,latency"
GEMM = "gemm_dtype,m,n,k,latency"
ATTENTION = "batch_size,isl,step,num_heads,num_key_value_heads,head_dim,window_size,kv_cache_dtype,latency"
MLA = "mla_dtype,kv_cache_dtype,num_heads,batch_size,isl,step,latency"
ROOFLINE = """\
- name: mine
  base: datasheet-only
  moe: {any: {law: roofline, fixed_s: 20 us, compute_frac: 0.5, memory_frac: 0.8, source: made up, kind: assumed}}
"""
EXPERTS = ExpertShape(hidden_size=4096, intermediate_size=4096, gated=True, weight_dtype="bf16")
HEADS = GroupedQueryAttention(kind="gqa", n_heads=32, n_kv_heads=4, head_dim=128)
LATENT = LatentAttention(
    kind="mla",
    n_heads=16,
    q_lora_rank=1536,
    kv_lora_rank=512,
    qk_nope_head_dim=128,
    qk_rope_head_dim=64,
    v_head_dim=128,
)


def device(folder: Path, cards: str = ROOFLINE, **tables: tuple[str, Sequence[str]]) -> Device:
    """An H200 whose kernel card names tables: operation -> header and rows, written below `folder`."""
    stated = {}
    for block, (header, rows) in tables.items():
        (folder / f"{block}.csv").write_text("\n".join((header, *rows)) + "\n")
        stated[block] = f"{block}.csv"
    return from_card(folder, f"kernels:\n{cards}  tables: {json.dumps(stated)}\n")


def from_card(folder: Path, text: str) -> Device:
    (folder / "card.yaml").write_text(text)
    return build_cluster(ClusterSpec(node="h200-sxm-8", kernels="card.yaml"), folder).device


def law_alone(device: Device) -> Device:
    return replace(device, measured=NOTHING)


def moe_row(tokens: int, ms: float, **changed: object) -> str:
    row: dict[str, object] = {
        "dtype": "bfloat16",
        "tokens": tokens,
        "hidden": 4096,
        "inter": 4096,
        "topk": 2,
        "experts": 8,
        "tp": 1,
        "ep": 1,
        "distribution": "balanced",
    }
    return ",".join(str(value) for value in (*(row | changed).values(), ms))


def same(times: object) -> Any:
    return pytest.approx(times, rel=1e-12)


class TestSurface:
    def test_between_two_points_of_a_line_it_is_linear(self):
        line = surface_of(np.zeros(2), np.array([1.0, 3.0]), np.array([0.1, 0.5]))
        assert line.at(0.0, [1.0, 1.5, 3.0]) == same([0.1, 0.2, 0.5])

    def test_between_two_lines_their_values_are_weighed(self):
        # At 2 the first line has 0.2, the second 0.8; a quarter of the way between them is 0.35.
        plane = surface_of(
            np.array([0.0, 0.0, 4.0, 4.0]), np.array([1.0, 3.0, 1.0, 3.0]), np.array([0.1, 0.3, 0.6, 1.0])
        )
        assert plane.at(1.0, 2.0) == same(0.35)
        assert plane.at([0.0, 4.0], 2.0) == same([0.2, 0.8])

    def test_outside_the_nearest_point_counts(self):
        plane = surface_of(np.array([0.0, 0.0, 1.0]), np.array([1.0, 2.0, 1.0]), np.array([0.1, 0.2, 0.3]))
        assert plane.at([-5.0, 0.0, 0.0, 9.0, 1.0], [1.0, -7.0, 8.0, 1.0, 8.0]) == same([0.1, 0.1, 0.2, 0.3, 0.3])

    def test_repeated_points_are_averaged(self):
        surface = surface_of(np.zeros(3), np.array([1.0, 1.0, 2.0]), np.array([0.1, 0.3, 0.0]))
        assert (surface.n_points, surface.at(0.0, 1.0)) == (2, same(0.2))

    def test_inner_points_left_out_make_the_band(self):
        # Each of 1, 2, 3 is predicted by the mean of its neighbours: 0, 0.05 and 0.
        surface = surface_of(np.zeros(5), np.arange(5.0), np.array([0.0, 0.0, 0.1, 0.0, -0.1]))
        assert surface.left_out() == same([-0.05, 0.1, 0.0])
        low, high = band_left_out([surface]) or (0.0, 0.0)
        assert (low, high) == (same(np.exp(-0.05)), same(np.exp(0.1)))

    def test_two_points_make_no_band(self):
        assert band_left_out([surface_of(np.zeros(2), np.arange(2.0), np.zeros(2))]) is None


class TestThinning:
    def test_every_other_point_is_judged_and_ends_stay(self):
        logs = np.array([0.0, 0.1, 0.2, 0.3, 1.0, 1.1])
        rest, left_out = thinned(surface_of(np.zeros(6), np.arange(6.0), logs))
        assert rest.points[0].tolist() == [0.0, 2.0, 4.0, 5.0]
        assert left_out.logs == same([0.1, 0.3])
        assert left_out.interpolated == same([0.1, 0.6])

    def test_every_other_line_is_judged_where_both_beside_it_reach(self):
        line, point = np.repeat(np.arange(3.0), 3), np.array([0.0, 1.0, 2.0, 0.0, 1.0, 5.0, 0.0, 1.0, 3.0])
        rest, left_out = thinned(surface_of(line, point, line + 10 * point))
        assert rest.lines.tolist() == [0.0, 2.0]
        assert left_out.logs == same([10.0, 1.0, 11.0, 12.0])
        assert left_out.interpolated == same([10.0, 1.0, 11.0, 12.0])


class TestDenseProducts:
    ROWS = ("bfloat16,64,4096,4096,0.02", "bfloat16,256,4096,4096,0.05", "bfloat16,1,512,512,0.003")

    def test_rows_of_the_table_are_exact(self, tmp_path: Path):
        own = device(tmp_path, gemm=(GEMM, self.ROWS))
        assert gemm_s([64, 256], 4096, 4096, "bf16", own) == same([20e-6, 50e-6])

    def test_between_rows_the_logs_of_the_correction_are_interpolated(self, tmp_path: Path):
        # 128 lies in the middle of log 64 and log 256: the geometric mean of both corrections.
        own = device(tmp_path, gemm=(GEMM, self.ROWS))
        law = gemm_s([64, 128, 256], 4096, 4096, "bf16", law_alone(own))
        factor = np.sqrt(20e-6 / law[0] * 50e-6 / law[2])
        assert gemm_s(128, 4096, 4096, "bf16", own) == same(law[1] * factor)

    def test_outside_the_rows_the_nearest_correction_holds(self, tmp_path: Path):
        own = device(tmp_path, gemm=(GEMM, self.ROWS))
        law = gemm_s([4, 64, 256, 8192], 4096, 4096, "bf16", law_alone(own))
        found = gemm_s([4, 64, 256, 8192], 4096, 4096, "bf16", own)
        assert found[[0, 3]] / law[[0, 3]] == same(found[[1, 2]] / law[[1, 2]])

    def test_uneven_rows_are_interpolated_among_themselves(self, tmp_path: Path):
        rows = [f"bfloat16,{m},4096,4096,{ms}" for m, ms in ((64, 0.02), (65, 0.04), (256, 0.02), (257, 0.04))]
        own = device(tmp_path, gemm=(GEMM, rows))
        ratio = gemm_s([128, 129], 4096, 4096, "bf16", own) / gemm_s([128, 129], 4096, 4096, "bf16", law_alone(own))
        assert ratio[1] > 1.5 * ratio[0]

    @pytest.mark.parametrize(("n", "k", "batch", "dtype"), [(4096, 2048, 1, "bf16"), (4096, 4096, 2, "bf16"),
                                                            (4096, 4096, 1, "fp8")])  # fmt: skip
    def test_other_shapes_are_the_laws(self, tmp_path: Path, n: int, k: int, batch: int, dtype: str):
        own = device(tmp_path, gemm=(GEMM, self.ROWS))
        assert gemm_s(64, n, k, dtype, own, batch) == gemm_s(64, n, k, dtype, law_alone(own), batch)


class TestRoutedExperts:
    ROWS = tuple(moe_row(tokens, ms) for tokens, ms in ((32, 6.0), (64, 7.0), (128, 9.0)))

    def test_balanced_rows_are_exact(self, tmp_path: Path):
        own = device(tmp_path, moe=(MOE, self.ROWS))
        counts = [[8] * 8, [16] * 8, [32] * 8]
        assert grouped_gemm_moe_s(counts, EXPERTS, own, [32, 64, 128]) == same([6e-3, 7e-3, 9e-3])

    def test_the_law_carries_a_balanced_row_to_skewed_tokens(self, tmp_path: Path):
        own = device(tmp_path, moe=(MOE, self.ROWS))
        balanced, skewed = grouped_gemm_moe_s([[16] * 8, [128, *[0] * 7]], EXPERTS, law_alone(own), 64)
        assert skewed < balanced / 2  # one expert's weights instead of eight
        assert grouped_gemm_moe_s([128, *[0] * 7], EXPERTS, own, 64) == same(7e-3 * skewed / balanced)

    def test_balanced_rows_come_before_skewed_and_one_rank_before_several(self, tmp_path: Path):
        others = [moe_row(64, 40.0, distribution="power_law_1.01"), moe_row(64, 50.0, experts=16, ep=2)]
        own = device(tmp_path, moe=(MOE, (*self.ROWS, *others)))
        assert grouped_gemm_moe_s([16] * 8, EXPERTS, own, 64) == same(7e-3)

    def test_more_slots_up_to_a_factor_of_two_take_the_correction_of_as_many_tokens_each(self, tmp_path: Path):
        own = device(tmp_path, moe=(MOE, self.ROWS))
        for slots, known in ((4, True), (9, True), (16, True), (17, False), (3, False)):
            law, found = (grouped_gemm_moe_s([16] * slots, EXPERTS, d) for d in (law_alone(own), own))
            expected = 7e-3 / grouped_gemm_moe_s([16] * 8, EXPERTS, law_alone(own), 64) if known else 1.0
            assert found / law == same(expected), slots

    def test_other_sizes_are_the_laws(self, tmp_path: Path):
        own = device(tmp_path, moe=(MOE, self.ROWS))
        for other in (replace(EXPERTS, intermediate_size=2048), replace(EXPERTS, gated=False)):
            assert grouped_gemm_moe_s([16] * 8, other, own) == grouped_gemm_moe_s([16] * 8, other, law_alone(own))

    def test_rows_of_deepseek_v3_are_lost_only_to_a_kernel_that_may_route_in_groups(self, tmp_path: Path):
        row = moe_row(64, 7.0, dtype="fp8_block", hidden=7168, inter=2048, topk=8, experts=256)
        own = device(tmp_path, moe=(MOE, [row]))
        shape = ExpertShape(hidden_size=7168, intermediate_size=2048, gated=True, weight_dtype="fp8_block")
        assert grouped_gemm_moe_s([2] * 256, shape, own, 64) == same(7e-3)
        with pytest.raises(HardwareError, match="group-limited routing"):
            device(tmp_path, moe=(f"{MOE},kernel_source", [f"{row},vllm_fp8moe"]))

    def test_times_of_several_files_are_one_table(self, tmp_path: Path):
        for name, row in (("a.csv", self.ROWS[0]), ("b.csv", self.ROWS[2])):
            (tmp_path / name).write_text(f"{MOE}\n{row}\n")
        own = from_card(tmp_path, f"kernels:\n{ROOFLINE}  tables: {{moe: [a.csv, b.csv]}}\n")
        assert grouped_gemm_moe_s([[8] * 8, [32] * 8], EXPERTS, own, [32, 128]) == same([6e-3, 9e-3])
        assert own.measured.blocks["moe", "bf16"].files == ("a.csv", "b.csv")


class TestAttention:
    DECODE = tuple(
        f"{batch},1,{step},32,4,128,{window},bfloat16,{ms}"
        for batch, step, window, ms in (
            (8, 1023, 0, 0.02), (8, 4095, 0, 0.05), (32, 1023, 0, 0.06), (32, 4095, 0, 0.2), (8, 511, 128, 0.015),
        )
    )  # fmt: skip
    PREFILL = tuple(
        f"{batch},{length},0,32,4,128,0,bfloat16,{ms}" for batch, length, ms in ((1, 512, 0.05), (2, 4096, 2.0))
    )

    def test_decode_is_exact_on_rows(self, tmp_path: Path):
        own = device(tmp_path, decode=(ATTENTION, self.DECODE))
        found = attention_decode_s([8, 32], [8 * 1024, 32 * 4096], HEADS, 1, "bf16", own)
        assert found == same([20e-6, 200e-6])

    def test_decode_between_four_rows(self, tmp_path: Path):
        # 16 requests of 2048 tokens lie in the middle of all four in logs.
        own = device(tmp_path, decode=(ATTENTION, self.DECODE))
        law = attention_decode_s(
            [8, 8, 32, 32, 16], np.array([8, 32, 32, 128, 32]) * 1024, HEADS, 1, "bf16", law_alone(own)
        )
        factor = np.exp(np.log(np.array([20e-6, 50e-6, 60e-6, 200e-6]) / law[:4]).mean())
        assert attention_decode_s(16, 16 * 2048, HEADS, 1, "bf16", own) == same(law[4] * factor)

    def test_a_window_takes_its_own_rows_where_it_clips(self, tmp_path: Path):
        own = device(tmp_path, decode=(ATTENTION, self.DECODE))
        windowed = HEADS.model_copy(update={"window_tokens": 128})
        clipped = windowed_context([512, 64], 128) * 8
        found = attention_decode_s(8, clipped, windowed, 1, "bf16", own)
        law = attention_decode_s(8, clipped, windowed, 1, "bf16", law_alone(own))
        unclipped = attention_decode_s(8, 8 * 64, HEADS, 1, "bf16", own) / attention_decode_s(
            8, 8 * 64, HEADS, 1, "bf16", law_alone(own)
        )
        assert found[0] == same(15e-6)
        assert found[1] / law[1] == same(unclipped)

    def test_heads_of_a_rank_are_the_shape(self, tmp_path: Path):
        own = device(tmp_path, decode=(ATTENTION, self.DECODE))
        wide = HEADS.model_copy(update={"n_heads": 64, "n_kv_heads": 8})
        assert attention_decode_s(8, 8 * 1024, wide, 2, "bf16", own) == same(20e-6)
        assert attention_decode_s(8, 8 * 1024, wide, 1, "bf16", own) == attention_decode_s(
            8, 8 * 1024, wide, 1, "bf16", law_alone(own)
        )

    def test_prefill_is_exact_on_rows_and_the_laws_behind_a_window(self, tmp_path: Path):
        own = device(tmp_path, prefill=(ATTENTION, self.PREFILL))
        queries, pairs = np.array([512, 2 * 4096]), np.array([512 * 513 // 2, 4096 * 4097])
        assert attention_prefill_s(queries, pairs, HEADS, 1, "bf16", own) == same([50e-6, 2e-3])
        windowed = HEADS.model_copy(update={"window_tokens": 128})
        times = [attention_prefill_s(512, 57_000, windowed, 1, "bf16", d) for d in (own, law_alone(own))]
        assert times[0] == times[1]

    def test_latent_attention(self, tmp_path: Path):
        decode = ("bfloat16,bfloat16,16,8,1,1023,0.03", "bfloat16,bfloat16,16,8,1,4095,0.06")
        prefill = ("bfloat16,bfloat16,16,1,512,0,0.07",)
        own = device(tmp_path, mla_decode=(MLA, decode), mla_prefill=(MLA, prefill))
        assert attention_decode_s(8, 8 * 1024, LATENT, 1, "bf16", own) == same(30e-6)
        assert attention_prefill_s(512, 512 * 513 // 2, LATENT, 1, "bf16", own) == same(70e-6)


class TestBands:
    def test_of_a_shape_that_the_table_holds(self):
        surface = Surface(lines=np.zeros(1), points=(np.arange(3.0),), logs=(np.zeros(3),))
        held = MeasuredBlock(files=("t.csv",), n_rows=3, surfaces={gemm_shape(8, 8): surface}, band=(0.9, 1.2))
        measured = Measured(blocks={("gemm", "bf16"): held})
        assert measured.low_high("gemm", "bf16", gemm_shape(8, 8)) == (0.9, 1.2)
        assert measured.low_high("gemm", "bf16", gemm_shape(8, 16)) is None
        assert measured.low_high("moe", "bf16", gemm_shape(8, 8)) is None

    def test_a_moved_device_takes_the_tables_band_where_it_has_one(self, tmp_path: Path):
        own = device(tmp_path, gemm=(GEMM, [f"bfloat16,{m},4096,4096,{0.02 * m / 64}" for m in (64, 128, 256)]))
        held = replace(own.measured.blocks["gemm", "bf16"], band=(0.9, 1.2))
        own = replace(own, measured=Measured(blocks={("gemm", "bf16"): held}))
        law = own.kernels.gemm("bf16").low_high
        for place, end in enumerate(ENDS):
            moved = device_at_end(own, ("gemm",), end)
            assert gemm_s(64, 4096, 4096, "bf16", moved) == same(20e-6 * (0.9, 1.2)[place])
            other = [gemm_s(64, 4096, 8192, "bf16", d) for d in (moved, own)]
            assert other[0] == same(other[1] * law[place])
            apart = device_at_end(own, ("decode",), end)
            assert gemm_s(64, 4096, 4096, "bf16", apart) == same(20e-6)


@pytest.mark.parametrize(
    ("block", "header", "row", "text"),
    [
        (
            "moe",
            GEMM,
            "bfloat16,64,4096,4096,0.02",
            "holds timings of gemm; `tables: {moe: FILE}` needs the columns of",
        ),
        ("decode", MLA, "bfloat16,bfloat16,16,8,1,1023,0.03", "needs the columns of family attention"),
        ("gemm", GEMM, "int17,64,4096,4096,0.02", "1 rows: data type int17: not modelled on h200-sxm"),
        ("gemm", GEMM, "bfloat16,64,4096,4096,-1", "must be positive"),
        ("gemm", GEMM, "bfloat16,64,4096,many,1", "column k must hold"),
        ("gemm", "m,n,latency", "64,4096,1", "the columns fit no family of kernels"),
        ("prefill", ATTENTION, "8,1,1023,32,4,128,0,bfloat16,0.02", "no row is of use for prefill"),
        ("prefill", ATTENTION, "1,512,0,32,4,128,128,bfloat16,0.02", "prefill behind a window"),
        ("moe", MOE, moe_row(64, 7.0, inter=64), "fit into the L2 cache"),
    ],
)
def test_tables_that_say_nothing_are_refused(tmp_path: Path, block: str, header: str, row: str, text: str):
    with pytest.raises(HardwareError) as refused:
        device(tmp_path, **{block: (header, [row])})
    assert text in str(refused.value)
    assert f"{block}.csv" in str(refused.value)


MODEL = """\
name: big-moe
sources: {default: {source: "made up for the tests", kind: assumed}}
n_layers: 3
hidden_size: 4096
vocab_size: 4096
attention: {kind: gqa, n_heads: 8, n_kv_heads: 4, head_dim: 64}
n_experts: 8
top_k: 2
expert_intermediate_size: 4096
"""
SCENARIO = """\
name: tables
model: big.yaml
cluster: {node: h200-sxm-8, nodes: 1, devices_per_node: 1, kernels: own/card.yaml}
workload:
  synthetic: {tokens: 512, sequence_tokens: 32}
  tokens_per_device: 64
  steps: 2
schedule: {overlap: none}
"""


class TestCommand:
    """A scenario in one folder whose kernel card lies in another, run from a third."""

    @pytest.fixture
    def scenario(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        (tmp_path / "own").mkdir()
        (tmp_path / "away").mkdir()
        (tmp_path / "big.yaml").write_text(MODEL)
        (tmp_path / "own" / "card.yaml").write_text(f"kernels:\n{ROOFLINE}  tables: {{moe: moe.csv}}\n")
        (tmp_path / "own" / "moe.csv").write_text("\n".join((MOE, *TestRoutedExperts.ROWS)) + "\n")
        (tmp_path / "tables.yaml").write_text(SCENARIO)
        monkeypatch.chdir(tmp_path / "away")
        return tmp_path / "tables.yaml"

    def run(self, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["moesim", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        assert isinstance(ended.value.code, int)
        return ended.value.code

    @pytest.mark.slow
    def test_experts_take_the_measured_time(self, scenario: Path, monkeypatch: pytest.MonkeyPatch):
        assert self.run(monkeypatch, "run", str(scenario), "--json", "result.json") == 0
        result = json.loads(Path("result.json").read_text())
        # Every expert has tokens, so that the roofline says of skewed tokens what it says of balanced ones.
        assert result["results"][0]["breakdown_s"]["experts"] == same(3 * 7e-3)
        stated = [constant for constant in result["constants"] if constant["name"] == "mine moe bf16 table"]
        assert [(c["value"], c["kind"], c["source"]) for c in stated] == [
            ("1 of 1 shapes, 3 points", "measured", "moe.csv (3 rows): 4096x4096x1")
        ]

    def test_a_missing_table_is_a_bad_input_at_its_line(
        self, scenario: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ):
        (scenario.parent / "own" / "moe.csv").unlink()
        assert self.run(monkeypatch, "run", str(scenario)) == 2
        message = capsys.readouterr().err
        assert "tables.yaml:3 cluster.kernels" in message
        assert "moe.csv: no such table of timings" in message
