"""Wrong scenarios, options and targets: one message that says where and what to do, and nothing written."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest

from tests.cli.command import CARD, SCENARIO
from tests.cli.conftest import Command

HERE = "tiny.yaml:"


@pytest.mark.parametrize(
    ("old", "new", "texts"),
    [
        ("nodes: 1", "nods: 1", [f"{HERE}3 cluster.nods: unknown key (did you mean 'nodes'?)"]),
        ("nodes: 1", "banana: 1", [f"{HERE}3 cluster.banana: unknown key (known: node, nodes,"]),
        ("  steps: 2", "  steps: 2\n  steps: 3", [f"{HERE}8 workload.steps: repeated key, first on line 7"]),
        ("nodes: 1", "intra_bandwidth: 900", [f"{HERE}3 cluster.intra_bandwidth: 900 has no unit", "'900 GB/s'"]),
        ("nodes: 1", "intra_bandwidth: 9 GiB", [f"{HERE}3 cluster.intra_bandwidth: unit 'GiB' measures bytes, not"]),
        ("nodes: 1", "intra_bandwidth: 1e-99 B/s", [f"{HERE}3", "beyond any machine"]),
        ("nodes: 1", "intra_bandwidth: -1 GB/s", [f"{HERE}3", "must be positive"]),
        ("nodes: 1", "nodes: two", [f"{HERE}3 cluster.nodes: expected a whole number, got 'two'"]),
        ("nodes: 1", "nodes: 0", [f"{HERE}3 cluster.nodes: must be greater than 0, got 0"]),
        ("nodes: 1", "nodes: .nan", [f"{HERE}3 cluster.nodes: .nan is not a finite number"]),
        ("nodes: 1", "nodes: .inf", [f"{HERE}3 cluster.nodes: .inf is not a finite number"]),
        ("overlap: none", "step_overhead: inf us", [f"{HERE}8 schedule.step_overhead: 'inf us' is not a quantity"]),
        ("overlap: none", "overlap: chunkd", [f"{HERE}8 schedule.overlap: 'chunkd'", "(did you mean 'chunked'?)"]),
        ("overlap: none", "exchange: {law: fito}", [f"{HERE}8 schedule.exchange.law", "(did you mean 'fifo'?)"]),
        (
            "overlap: none",
            "gradients: {order: fill, partition: 3 MB}",
            [f"{HERE}8", "leave partition"],
        ),
        ("overlap: none", "gradients: {order: first}", [f"{HERE}8 schedule.gradients.order", "'first'"]),
        ("solver: eplb", "solver: epbl", [f"{HERE}10 compare.placement.1.solver", "(did you mean 'eplb'?)"]),
        ("tokens: 512", "tokens: 512, seed: -1", [f"{HERE}5 workload.synthetic.seed: must be at least 0, got -1"]),
        ("tokens: 512", "fit: a.npz, skew: 1e400", [f"{HERE}5 workload.synthetic.skew: 1e400 is too large"]),
        ("  tokens_per", "  trace: t.npz\n  tokens_per", [f"{HERE}4 workload: give either 'trace: FILE' or"]),
        ("model: tiny-moe.yaml\n", "", [f"{HERE}1 model: missing key"]),
        ("name: tiny\n", "name: [tiny\n", [f"{HERE}2: not valid YAML"]),
        ("name: tiny\n", "name: !!python/object/apply:os.mkdir [boom]\n", [f"{HERE}1", "tag '!!python/object"]),
        ("name: tiny\n", "name: *other\n", [f"{HERE}1", "alias *other is not supported"]),
        ("name: tiny\n", "name: \x07\n", [f"{HERE}1", "control character"]),
        ("\nmodel:", "\n\tmodel:", [f"{HERE}2", "tab"]),
        (SCENARIO, "", ["tiny.yaml:1: the file is empty"]),
        (SCENARIO, "- a\n- b\n", ["tiny.yaml:1: expected keys at top level, got a list"]),
    ],
)
def test_a_wrong_scenario_is_refused_at_its_line(
    moesim: Command, folder: Path, old: str, new: str, texts: list[str]
) -> None:
    assert old in SCENARIO
    (folder / "tiny.yaml").write_text(SCENARIO.replace(old, new, 1))
    moesim("compare", "tiny.yaml", "--json", "r.json", "--out", "out").refused(2, *texts)


def test_all_problems_of_a_file_are_told_together(moesim: Command, folder: Path) -> None:
    (folder / "tiny.yaml").write_text(SCENARIO.replace("nodes: 1", "nods: 1").replace("steps: 2", "steps: -2"))
    done = moesim("run", "tiny.yaml", "--set", "schedule.chunks=many", "--set", "cluster")
    done.refused(2, "4 problems in tiny.yaml", "tiny.yaml:3 cluster.nods", "tiny.yaml:7 workload.steps")
    done.refused(2, "--set schedule.chunks: expected a whole number, got 'many'", "--set cluster: expected PATH=VALUE")


def test_yaml_that_grows_by_aliases_is_refused_at_once(moesim: Command, folder: Path) -> None:
    bomb = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    bomb += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
    (folder / "tiny.yaml").write_text("\n".join(bomb))
    moesim("run", "tiny.yaml").refused(2, "alias *a0 is not supported")


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"name: \xff\xfe", "is not UTF-8"),
        (b"\x00" * 64, "control character"),
        (b"[" * 5000, "nested deeper"),
        (b"#" * (9 << 20), "larger than 8 MiB"),
    ],
)
def test_files_that_are_no_scenarios(moesim: Command, folder: Path, content: bytes, text: str) -> None:
    (folder / "tiny.yaml").write_bytes(content)
    moesim("run", "tiny.yaml").refused(2, "tiny.yaml", text)


@pytest.mark.parametrize(
    ("option", "text"),
    [
        ("cluster.nodes", "--set cluster.nodes: expected PATH=VALUE"),
        ("=3", "expected PATH=VALUE"),
        ("cluster.nods=3", "--set cluster.nods: unknown key (did you mean 'nodes'?)"),
        ("cluster.nodes.x=3", "cluster.nodes is a single value without keys"),
        ("compare.placement.7.solver=eplb", "is a list of 3 entries, counted from 0; '7' is none of them"),
        ("cluster.nodes=many", "--set cluster.nodes: expected a whole number, got 'many'"),
        ("cluster.nodes=", "--set cluster.nodes: expected a whole number, got nothing"),
        ("cluster.nodes=[", "--set cluster.nodes: not valid YAML"),
        ("seed=-1", "--set seed: must be at least 0, got -1"),
        ("model=tiny", "no model card 'tiny'"),
        ("model=deepseek-v3x", "(did you mean 'deepseek-v3'?); see `moesim list models`"),
        ("model=absent.yaml", "absent.yaml: no such file"),
        ("model=absent.json", "absent.json"),
        ("cluster.node=h200-sxm-9", "(did you mean 'h200-sxm-8'?); see `moesim list hardware`"),
        ("cluster.device=h2000", "no device card 'h2000'"),
        ("workload={trace: absent.npz}", "no trace file absent.npz; `moesim trace import` makes one"),
        ("workload.synthetic.fit=absent.npz", "no trace file absent.npz"),
        ("workload.synthetic.skew=1000", "skew [1000.0] must lie within 0.."),
        ("workload.synthetic.tokens=1000000000000", "GiB; lower tokens"),
        ("workload.synthetic={tokens: 900000000000, sequence_tokens: 1}", "GiB; lower tokens"),
        ("workload.steps=1000000000000", "lower workload.steps or workload.tokens_per_device"),
        ("workload.tokens_per_device=1000000000000", "lower workload.steps or workload.tokens_per_device"),
        ("cluster.nodes=1000000000", "8,000,000,000 devices"),
        ("workload.split={fit: 0.7, evaluate: 0.7}", "overlap: together they exceed 1"),
        ("workload.split={fit: 0.99, evaluate: 0.01}", "raise the share, or take a trace with more sequences"),
        ("schedule={overlap: chunked, chunks: 1000}", "1000 chunks of the 8 tokens of a device"),
        ("parallel.attention={dp: 4}", "dp x tp = 4 x 1 = 4, but the cluster has 8 devices (1 x 8); give degrees"),
        ("parallel.experts={ep: 3, tp: 2}", "ep x tp = 3 x 2 = 6, but the cluster has 8 devices (1 x 8)"),
        ("cluster.inter_bandwidth=0 GB/s", "'0 GB/s' must be positive"),
    ],
)
def test_a_wrong_option_of_set_is_refused(moesim: Command, option: str, text: str) -> None:
    moesim("run", "tiny.yaml", "--set", option).refused(2, text)


@pytest.mark.parametrize(
    ("options", "texts"),
    [
        (["cluster.devices_per_node=3"], ["16 slots do not divide over 3 ranks; redundant 2 would, or 2 or 4 ranks"]),
        (["placement.redundant=4"], ["16 experts + 4 redundant = 20 slots do not divide over 8 ranks; redundant 0"]),
        (["cluster.nodes=9"], ["16 slots do not divide over 72 ranks"]),
        (["placement.redundant=1000000"], ["can use at most 112"]),
        (
            ["memory.context_tokens=1000000000"],
            ["short by", "GiB. Levers: more devices", "a shorter context than 1000"],
        ),
        (["memory.requests_per_device=90000000"], ["short by", "fewer than 90000000 requests a device"]),
        (["model=kimi-k2", "workload.synthetic.tokens=64"], ["experts 118.", "short by", "Levers: more devices"]),
    ],
)
def test_what_cannot_fit_ends_with_exit_code_3_and_a_lever(
    moesim: Command, options: list[str], texts: list[str]
) -> None:
    arguments = [piece for option in options for piece in ("--set", option)]
    moesim("run", "tiny.yaml", *arguments, "--out", "out").refused(3, *texts)


@pytest.mark.parametrize("executor", ["vector", "event"])
@pytest.mark.parametrize(
    ("nodes", "exchange", "text"),
    [
        (2, "{law: fifo, dedup: node}", "law fifo needs dedup none or device; node forwarding has law port"),
        (9, "{law: maxmin}", "law maxmin"),
    ],
)
def test_laws_outside_their_range(moesim: Command, nodes: int, exchange: str, text: str, executor: str) -> None:
    options = [f"cluster.nodes={nodes}", f"schedule={{exchange: {exchange}, executor: {executor}}}"]
    options += ["placement.redundant=56"] if nodes == 9 else []
    arguments = [piece for option in options for piece in ("--set", option)]
    moesim("run", "tiny.yaml", *arguments).refused(2, text)


def test_a_scenario_without_axes_has_nothing_to_compare(moesim: Command) -> None:
    moesim("compare", "tiny.yaml", "--set", "compare=null").refused(2, "no `compare:` section", "use `moesim run`")


def test_two_plans_of_one_name_are_told_apart_by_the_user(moesim: Command) -> None:
    done = moesim("compare", "tiny.yaml", "--set", "compare.placement=[{solver: eplb}, {solver: eplb}]")
    done.refused(2, "several plans are called eplb; give them a `name:`")


@pytest.mark.parametrize("name", ["absent.yaml", "examples/frist", ".", "lost.yaml", "x" * 5000, "\x00"])
def test_scenarios_that_are_not_there(moesim: Command, folder: Path, name: str) -> None:
    (folder / "lost.yaml").symlink_to("nowhere.yaml")
    hint = "(did you mean 'examples/first'?)" if name == "examples/frist" else "see `moesim list scenarios`"
    moesim("run", name).refused(2, "no scenario file or shipped scenario", hint)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["frobnicate"], "No such command 'frobnicate'"),
        (["run"], "Missing argument 'SCENARIO'"),
        (["run", "tiny.yaml", "--frob"], "No such option"),
        (["run", "tiny.yaml", "other.yaml"], "unexpected extra argument"),
        (["run", "tiny.yaml", "--seed", "one"], "Invalid value for '--seed'"),
        (["run", "tiny.yaml", "--seed", "-1"], "Invalid value for '--seed'"),
        (["trace", "synth", "t.npz"], "Missing option '--model'"),
        (["trace", "synth", "t.npz", "--model", "x", "--tokens", "0"], "Invalid value for '--tokens'"),
        (["trace", "synth", "t.npz", "--model", "x", "--skew", "nan"], "skew"),
        (["trace", "import", "esft", "a", "b", "--moe-layers", "9-3"], "'9-3' is no list of layers; write 3-60 or"),
        (["trace", "import", "esft", "a", "b", "--moe-layers", "1-99999999999"], "is no list of layers"),
        (["list", "modles"], "cannot list 'modles' (did you mean 'models'?): one of models, hardware,"),
        (["trace", "synth", "t.npz", "--model", "olmo-1b-7b"], "(did you mean 'olmoe-1b-7b'?)"),
        (["trace", "synth", "t.npz", "--model", "olmoe-1b-7b", "--tokens", "1000000000000"], "GiB; lower tokens"),
        (["validate", "kernels", "--table", "absent.csv", "--card", "h200-sxm"], "absent.csv"),
        (["validate", "kernels", "--table", "tiny.yaml", "--card", "h200-sxm"], "one of .parquet, .csv.gz, .csv"),
        (["validate", "kernels", "--table", "tiny.yaml", "--card", "h300"], "did you mean"),
        (
            ["validate", "speed", "--table", "tiny.yaml", "--card", "h200-sxm"],
            "suite kernels, not 'speed'",
        ),
        (["trace", "synth", "no/t.npz", "--model", "olmoe-1b-7b"], "there is no folder no"),
    ],
)
def test_wrong_words_on_the_command_line(moesim: Command, arguments: list[str], text: str) -> None:
    moesim(*arguments).refused(2, text)


@pytest.mark.parametrize("command", ["run", "compare"])
@pytest.mark.parametrize(
    ("target", "text"),
    [
        (["--out", "tiny.yaml"], "tiny.yaml is a file in the way"),
        (["--out", "tiny.yaml/deep/er"], "tiny.yaml is a file in the way"),
        (["--out", "lost"], "lost is a file in the way"),
        (["--json", "no/r.json"], "cannot be written (there is no folder no)"),
        (["--json", "tiny.yaml/r.json"], "there is no folder tiny.yaml"),
        (["--json", "."], "is a folder; give a file name"),
    ],
)
def test_results_that_could_not_be_written_are_not_computed(
    moesim: Command, folder: Path, monkeypatch: pytest.MonkeyPatch, command: str, target: list[str], text: str
) -> None:
    (folder / "lost").symlink_to("nowhere")
    monkeypatch.setattr("moesim.api.load", lambda *_: pytest.fail("the scenario was loaded first"))
    moesim(command, "tiny.yaml", *target).refused(2, text)


def test_folders_without_the_right_to_write(moesim: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scenarios.files.os.access", lambda *_: False)
    moesim("run", "tiny.yaml", "--json", "r.json").refused(2, "r.json: cannot be written (no right to write in .)")
    moesim("run", "tiny.yaml", "--out", "a/b").refused(2, "a/b: cannot be written (no right to write in .)")


def test_memory_that_runs_out_is_no_bug(moesim: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def exhaust(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr("moesim.api.run", exhaust)
    moesim("run", "tiny.yaml").refused(2, "this machine's memory does not suffice; take fewer steps")


def test_our_own_mistakes_are_told_from_the_user_s(moesim: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moesim.api.run", lambda *_, **__: {}["gone"])
    done = moesim("run", "tiny.yaml")
    assert (done.code, done.files) == (70, set())
    assert done.err == "moesim: internal error: KeyError: 'gone'; run again with --debug and report it\n"


def test_a_card_with_mistakes_is_refused_at_its_line(moesim: Command, folder: Path) -> None:
    (folder / "tiny-moe.yaml").write_text(CARD.replace("top_k: 2", "top_k: 20").replace("head_dim", "head_dims"))
    moesim("run", "tiny.yaml").refused(2, "tiny-moe.yaml:6 attention.head_dims: unknown key (did you mean 'head_dim'?)")
    (folder / "tiny-moe.yaml").write_text(CARD.replace("top_k: 2", "top_k: 20"))
    moesim("run", "tiny.yaml").refused(2, "tiny-moe.yaml", "20")


def test_foreign_files_in_place_of_a_trace(moesim: Command, folder: Path) -> None:
    (folder / "text.npz").write_text("hello")
    (folder / "empty.npz").write_bytes(b"")
    with zipfile.ZipFile(folder / "zip.npz", "w") as archive:
        archive.writestr("note.txt", "hello")
    np.savez(folder / "plain.npz", ids=np.zeros(3))
    np.savez(folder / "pickle.npz", ids=np.array([{}, 1], dtype=object))
    (folder / "lost.npz").symlink_to("nowhere.npz")
    (folder / "folder.npz").mkdir()
    expected = {
        "text": "not a readable trace",
        "empty": "not a readable trace",
        "zip": "not a readable trace",
        "plain": "not a moesim trace",
        "pickle": "holds Python objects",
        "lost": "no such trace file",
        "folder": "not a readable trace",
    }
    for name, text in expected.items():
        moesim("trace", "info", f"{name}.npz").refused(2, f"{name}.npz", text)
        at_run = "no trace file folder.npz" if name == "folder" else "no trace file" if name == "lost" else text
        moesim("run", "tiny.yaml", "--set", f"workload={{trace: {name}.npz}}").refused(2, f"{name}.npz", at_run)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ("model=mixtral-8x7", "--set model: no model card 'mixtral-8x7' (did you mean 'mixtral-8x7b'?)"),
        ("cluster.node=h200-sxm", "--set cluster.node: no node card 'h200-sxm' (did you mean h200-sxm-8?)"),
    ],
)
def test_cards_that_are_not_there_are_told_with_their_place(moesim: Command, change: str, text: str) -> None:
    moesim("run", "tiny.yaml", "--set", change).refused(2, text)
