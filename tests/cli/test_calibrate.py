"""`moesim calibrate` and `moesim validate` on small tables, as a user runs them."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hwmodels.cluster import build_cluster
from hwmodels.collectives import collective_s
from hwmodels.devices import Device
from hwmodels.library import find_device, find_kernels, find_link
from hwmodels.validation.timings import Timings
from moesim import validating
from scenarios.cluster_specs import ClusterSpec
from scenarios.errors import CalibrationError
from tests.cli.conftest import Command
from tests.devices import h200
from tests.timings import gemm_rows, timings, with_times

# An H200 whose dense products take what typical constants say, and the rest what the shipped card does.
DEVICE = Device(card=find_device("h200-sxm"), kernels=h200().kernels)
FEW = [row for row in gemm_rows() if (row["n"], row["k"]) in ((4096, 4096), (256, 7168), (14336, 4096))]


def write(path: Path, table: Timings) -> Path:
    with path.open("w", newline="") as stream:
        writer = csv.writer(stream)
        names = [name for name in table.columns if name != "latency"]
        writer.writerow([*names, "latency"])
        for row in range(len(table)):
            writer.writerow([*(table.columns[name][row] for name in names), repr(float(table.measured_s[row] * 1e3))])
    return path


@pytest.fixture
def exact(folder: Path) -> str:
    """A table of dense products that take what the law says under `DEVICE`."""
    return write(folder / "gemm.csv", with_times(timings(FEW), DEVICE)).name


@pytest.fixture
def noisy(folder: Path) -> str:
    """The same with noise of 10 %, and rows that nothing is claimed of."""
    table = with_times(timings([*FEW, *FEW[:1]]), DEVICE)
    table.columns["gemm_dtype"][-1] = "int3"
    noise = np.random.default_rng(0).lognormal(0, 0.1, len(table))
    return write(folder / "noisy.csv", replace(table, measured_s=table.measured_s * noise)).name


@pytest.fixture
def links(folder: Path) -> str:
    """All-to-alls of 2 and 8 devices on NVLink 4: 10 us and 225 GB/s, half of the link's bandwidth."""
    lines = ["nccl_dtype,num_gpus,message_size,op_name,latency,device"]
    for n_devices in (2, 8):
        for size in 2 ** np.arange(9, 29):
            sent = 2 * size * (n_devices - 1) / n_devices
            lines.append(f"half,{n_devices},{size},alltoall,{1e3 * (10e-6 + sent / 225e9)},NVIDIA H200")
    (folder / "nccl.csv").write_text("\n".join(lines) + "\n")
    return "nccl.csv"


class TestLinks:
    @pytest.mark.slow
    def test_a_table_becomes_cards_that_a_scenario_uses(self, moesim: Command, folder: Path, links: str) -> None:
        done = moesim("calibrate", links, "--out", "own.yaml", "--json", "own.json").succeeded()
        assert done.files == {"own.yaml", "own.json"}
        assert "nvlink-4 nccl all-to-all 8" in done.out
        assert "cluster: {cards: own.yaml}" in done.out
        residuals = json.loads((folder / "own.json").read_text())["residuals"]
        assert [one["operation"] for one in residuals] == ["all-to-all 2", "all-to-all 8"]
        assert all(one["mean_ape"] < 0.01 for one in residuals)
        cluster = build_cluster(ClusterSpec(node="h200-sxm-8", cards="own.yaml"), folder)
        assert cluster.collectives is not None
        total_bytes = np.array([2.0**12, 2.0**20, 2.0**28])
        times = collective_s("all-to-all", total_bytes, 8, cluster.collectives, 450e9)
        assert times == pytest.approx(10e-6 + total_bytes * 7 / 8 / 225e9, rel=0.02)
        nccl = ("run", "tiny.yaml", "--set", "schedule.exchange.kernel=nccl", "--json", "-")
        own = moesim(*nccl, "--set", "cluster.cards=own.yaml").succeeded().out
        assert "fitted on nccl.csv" in own
        assert "fitted on nccl.csv" not in moesim(*nccl).succeeded().out

    def test_kernels_and_links_are_fitted_apart(self, moesim: Command, exact: str, links: str) -> None:
        moesim("calibrate", links, "--card", "h200-sxm").refused(2, "tables of links make cards of their own")
        moesim("calibrate", links, exact).refused(2, "tables of links make cards of their own")
        moesim("calibrate", exact).refused(2, "timings of kernels need the device: --card CARD")

    def test_unknown_devices_are_refused(self, moesim: Command, folder: Path, links: str) -> None:
        (folder / links).write_text((folder / links).read_text().replace("NVIDIA H200", "Abacus 1"))
        moesim("calibrate", links).refused(2, "no link card is known for device 'Abacus 1'")


class TestCards:
    def test_own_cards_come_before_shipped_ones(self, moesim: Command, folder: Path) -> None:
        link = find_link("nvlink-4").model_dump(mode="json")
        for name, quantity in (("bytes_per_s", "45 GB/s"), ("latency_s", "10 us"), ("step_latency_s", "1 us")):
            link[name] = {"value": quantity, "source": "made up", "kind": "assumed"}
        (folder / "own.yaml").write_text(json.dumps({"links": [link]}))
        cluster = build_cluster(ClusterSpec(node="h200-sxm-8", cards="own.yaml"), folder)
        assert cluster.intra.bytes_per_s.value == 45e9
        assert cluster.device == build_cluster(ClusterSpec(node="h200-sxm-8")).device
        out = moesim("run", "tiny.yaml", "--set", "cluster.cards=own.yaml", "--json", "-").succeeded().out
        assert "made up" in out

    def test_a_wrong_file_has_a_line(self, moesim: Command, folder: Path) -> None:
        moesim("run", "tiny.yaml", "--set", "cluster.cards=no.yaml").refused(2, "no.yaml")
        (folder / "own.yaml").write_text("link: []\n")
        moesim("run", "tiny.yaml", "--set", "cluster.cards=own.yaml").refused(2, "own.yaml:1 link")


class TestCalibrate:
    @pytest.mark.slow
    def test_a_table_becomes_a_card_that_a_scenario_uses(self, moesim: Command, folder: Path, exact: str) -> None:
        done = moesim("calibrate", exact, "--card", "h200-sxm", "--name", "own", "--out", "own.yaml").succeeded()
        assert done.files == {"own.yaml"}
        assert "own: errors on shapes that no constant was fitted on" in done.out
        assert "gemm bf16" in done.out and " 39 " in done.out
        assert "Kernel card: own.yaml" in done.out
        kernels = find_kernels("own.yaml", folder)
        assert [card.name for card in kernels.cards][:2] == ["own", "h200-vllm"]  # the card's own kernels stand in
        assert kernels.gemm("bf16").source == f"fitted on {exact}"
        (folder / "tiny.yaml").write_text((folder / "tiny.yaml").read_text().replace("nodes: 1", "kernels: own.yaml"))
        ran = moesim("run", "tiny.yaml", "--json", "-").succeeded()
        origins = {constant["name"]: constant["source"] for constant in json.loads(ran.out)["constants"]}
        assert origins["own gemm bf16"] == f"fitted on {exact}"
        assert origins["own moe bf16"] == find_kernels("h200-vllm").moe("bf16").source

    @pytest.mark.slow
    def test_results_as_json(self, moesim: Command, exact: str) -> None:
        done = moesim("calibrate", exact, "--card", "h200-sxm", "--base", "ideal", "--json", "-").succeeded()
        found = json.loads(done.out)
        assert found["card"]["name"] == "h200-sxm-calibrated"
        assert found["card"]["base"] == "ideal"
        assert found["left_out"] == {}
        (residuals,) = found["residuals"]
        assert (residuals["block"], residuals["dtype"], residuals["n"]) == ("gemm", "bf16", 39)
        assert residuals["mean_ape"] < 0.05
        assert found["card"]["gemm"]["bf16"]["fixed_s"] == pytest.approx(2.5e-6, rel=0.02)
        written = moesim("calibrate", exact, "--card", "h200-sxm", "--json", "found.json").succeeded()
        assert written.files == {"found.json"}
        assert "--out FILE writes the file" in written.out

    @pytest.mark.slow
    def test_rows_left_out_are_told(self, moesim: Command, noisy: str) -> None:
        done = moesim("calibrate", noisy, "--card", "h200-sxm").succeeded()
        assert "left out: 1 rows, data type int3: not modelled on h200-sxm" in done.out
        assert done.files == set()

    @pytest.mark.parametrize(
        ("arguments", "text"),
        [
            (["absent.csv", "--card", "h200-sxm"], "absent.csv: no such table of timings"),
            (["tiny.yaml", "--card", "h200-sxm"], "one of .parquet, .csv.gz, .csv"),
            (["gemm.csv", "--card", "h300"], "did you mean"),
            (["gemm.csv", "--card", "h200-sxm", "--base", "h200-vlm"], "did you mean 'h200-vllm'"),
            (["gemm.csv", "--card", "h200-sxm", "--base", "absent.yaml"], "absent.yaml: no such file"),
            (["gemm.csv", "--card", "h200-sxm", "--out", "no/own.yaml"], "there is no folder no"),
            (["gemm.csv", "--card", "h200-sxm", "--json", "no/own.json"], "there is no folder no"),
            (["gemm.csv"], "timings of kernels need the device: --card CARD"),
            (["--card", "h200-sxm"], "Missing argument 'TIMINGS...'"),
            (
                ["broken.csv", "--card", "h200-sxm"],
                "broken.csv: row 0 has latency -1.0; times and rates must be positive",
            ),
            (["other.csv", "--card", "h200-sxm"], "other.csv: the columns fit no family of kernels"),
            (["one.csv", "--card", "h200-sxm"], "no constants came of one.csv: gemm bf16"),
        ],
    )
    def test_bad_input(self, moesim: Command, folder: Path, exact: str, arguments: list[str], text: str) -> None:
        lines = (folder / exact).read_text().splitlines()
        (folder / "one.csv").write_text("\n".join(lines[:2]) + "\n")
        (folder / "broken.csv").write_text("gemm_dtype,m,n,k,latency\nbfloat16,1,1,1,-1\n")
        (folder / "other.csv").write_text("a,b\n1,2\n")
        moesim("calibrate", *arguments).refused(2, text)

    def test_a_card_is_written_whole_or_not_at_all(
        self, moesim: Command, folder: Path, exact: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (folder / "own.yaml").write_text("kept\n")

        def fail(card: object) -> str:
            raise CalibrationError(f"no YAML of {type(card).__name__}")

        monkeypatch.setattr("moesim.calibrating.card_yaml", fail)
        moesim("calibrate", exact, "--card", "h200-sxm", "--out", "own.yaml").refused(2, "no YAML of KernelCard")
        assert (folder / "own.yaml").read_text() == "kept\n"


class TestValidateTable:
    def test_constants_of_the_card_and_of_other_shapes(self, moesim: Command, exact: str) -> None:
        done = moesim("validate", "kernels", "--table", exact, "--card", "h200-sxm").succeeded()
        assert f"{exact} on h200-sxm, constants h200-vllm" in done.out
        assert "card" in done.out and "unseen shapes" in done.out
        assert "gemm bf16" in done.out and " 39 " in done.out

    @pytest.mark.slow
    def test_kernels_of_a_file_of_an_engine_or_named(self, moesim: Command, folder: Path, exact: str) -> None:
        moesim("calibrate", exact, "--card", "h200-sxm", "--name", "own", "--out", "own.yaml").succeeded()
        arguments = ("validate", "kernels", "--table", exact, "--card", "h200-sxm")
        done = moesim(*arguments, "--kernels", "own.yaml", "--json", "-")
        scores = json.loads(done.succeeded().out)["suites"]
        assert [(row["name"], row["part"], row["constants"], row["n"]) for row in scores] == [
            ("gemm bf16", "card", "own", 39),
            ("gemm bf16", "unseen shapes", "own", 39),
        ]
        assert scores[0]["mean_ape"] < 0.01  # fitted on these very rows
        assert scores[0]["goal"] is scores[0]["limit"] is None
        table = with_times(timings([row | {"framework": "TRTLLM"} for row in FEW]), DEVICE)
        write(folder / "engine.csv", table)
        done = moesim("validate", "kernels", "--table", "engine.csv", "--card", "h200-sxm", "--json", "-")
        assert {row["constants"] for row in json.loads(done.succeeded().out)["suites"]} == {"h200-trtllm"}

    @pytest.mark.slow
    def test_a_limit_that_is_missed_ends_with_1(self, moesim: Command, noisy: str) -> None:
        arguments = ("validate", "kernels", "--table", noisy, "--card", "h200-sxm")
        missed = moesim(*arguments, "--limit", "0.02")
        assert (missed.code, missed.err) == (1, "")
        assert "limit 2%" in missed.out and " missed" in missed.out
        met = moesim(*arguments, "--limit", "0.9").succeeded()
        assert " ok" in met.out and "missed" not in met.out
        rows = json.loads(moesim(*arguments, "--limit", "0.02", "--json", "-").out)["suites"]
        assert {(row["limit"], row["ok"]) for row in rows} == {(0.02, False)}

    @pytest.mark.slow
    def test_a_line_is_ok_where_both_of_its_medians_are(self, moesim: Command, noisy: str) -> None:
        moesim("calibrate", noisy, "--card", "h200-sxm", "--name", "own", "--out", "own.yaml").succeeded()
        arguments = ("validate", "kernels", "--table", noisy, "--card", "h200-sxm", "--kernels", "own.yaml")
        card, unseen = (row["median_ape"] for row in json.loads(moesim(*arguments, "--json", "-").out)["suites"])
        assert card < unseen  # fitted on these very rows
        done = moesim(*arguments, "--limit", str((card + unseen) / 2))
        assert (done.code, done.err) == (1, "")
        assert " missed" in done.out

    @pytest.mark.slow
    def test_plots_and_results_are_written(self, moesim: Command, exact: str) -> None:
        done = moesim("validate", "kernels", "--table", exact, "--card", "h200-sxm", "--out", "plots").succeeded()
        assert "plots/validation.json" in done.files
        assert any(name.endswith((".png", ".svg")) for name in done.files)

    @pytest.mark.parametrize(
        ("arguments", "text"),
        [
            (["kernels", "--table", "gemm.csv"], "--table and --card belong together"),
            (["kernels", "--card", "h200-sxm"], "--table and --card belong together"),
            (["skew", "--table", "gemm.csv", "--card", "h200-sxm"], "judged by the suite kernels, not 'skew'"),
            (["kernels", "--table", "gemm.csv", "--card", "h200-sxm", "--kernels", "no.yaml"], "no.yaml: no such file"),
            (["kernels", "--table", "gemm.csv", "--card", "h200-sxm", "--limit", "-1"], "--limit"),
            (["kernels", "--table", "gemm.csv", "--card", "h200-sxm", "--json", "no/a.json"], "there is no folder no"),
            (["kernels", "--table", "gemm.csv", "--card", "h200-sxm", "--out", "tiny.yaml"], "tiny.yaml"),
            (["kernel"], "there is no suite 'kernel' (did you mean 'kernels'?)"),
            (["kernels", "--tables", "absent"], "absent: no such folder of tables"),
            (["skew", "--tables", "."], ".: holds no table of the suite skew"),
            (["transfer", "--tables", "."], ".: holds no table of the suite transfer"),
        ],
    )
    def test_bad_input(self, moesim: Command, exact: str, arguments: list[str], text: str) -> None:
        del exact
        moesim("validate", *arguments).refused(2, text)

    def test_without_tables_the_remedy_is_told(self, moesim: Command, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("hwmodels.validation.tables.PACKAGE", "no_such_package")
        moesim("validate", "kernels").refused(2, "pip install 'moesim[tables]', or name a folder with --tables")


class TestValidateSuite:
    """On a folder with one made table of dense products of vLLM on an H200, in place of the public ones."""

    @pytest.fixture
    def tables(self, folder: Path) -> Callable[[float], str]:
        """A folder of tables whose times scatter by a deviation of logs."""
        parquet, arrow = pytest.importorskip("pyarrow.parquet"), pytest.importorskip("pyarrow")

        def make(deviation: float) -> str:
            table = with_times(timings(FEW), DEVICE)
            times = table.measured_s * np.random.default_rng(0).lognormal(0, deviation, len(table))
            columns = {name: column for name, column in table.columns.items() if name != "latency"}
            path = folder / "tables" / "h200_sxm" / "gemm" / "vllm_0.24.0.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            parquet.write_table(arrow.table({**columns, "latency": times * 1e3}), path)
            return str(folder / "tables")  # absolute: scores of a folder are kept within a process

        return make

    @pytest.mark.slow
    def test_published_figures_need_no_tables(self, moesim: Command, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(validating, "tables_folder", lambda _: pytest.fail("asked for tables"))
        done = moesim("validate", "published")
        assert done.code == 0
        assert "decode EP144 chunks overlap" in done.out

    @pytest.mark.slow
    def test_goals_reached(self, moesim: Command, folder: Path, tables: Callable[[float], str]) -> None:
        done = moesim("validate", "kernels", "--tables", tables(0.01), "--json", "found.json", "--out", "plots")
        assert done.code == 0
        assert "h200_sxm gemm vllm 0.24.0" in done.out and " ok" in done.out
        assert f"left out, not in {folder / 'tables'}: h200_sxm moe trtllm" in done.out
        assert {"found.json", "plots/validation.json", "plots/errors-kernels.png"} <= done.files
        (row,) = json.loads((Path("found.json")).read_text())["suites"]
        assert (row["suite"], row["name"], row["part"], row["n"]) == ("kernels", "gemm bf16", "unseen shapes", 39)
        assert (row["goal"], row["limits"], row["ok"]) == ({"mean_ape": 0.08}, {"mean_ape": 0.08}, True)
        assert 0 < row["mean_ape"] < 0.08

    @pytest.mark.slow
    def test_a_goal_missed_without_a_cause_ends_with_1(self, moesim: Command, tables: Callable[[float], str]) -> None:
        done = moesim("validate", "kernels", "--tables", tables(0.2))
        assert done.code == 1
        assert " missed" in done.out

    @pytest.mark.slow
    def test_a_folder_without_a_table_of_the_suite(self, moesim: Command, tables: Callable[[float], str]) -> None:
        done = moesim("validate", "transfer", "--tables", tables(0.0))
        done.refused(2, "tables: holds no table of the suite transfer")
