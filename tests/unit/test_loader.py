import random
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hwmodels.cards import CardSet
from scenarios.errors import MoesimError, ScenarioError
from scenarios.loader import load_scenario, load_spec
from scenarios.models import ModelCard
from scenarios.placement_specs import SolverName
from scenarios.specs import ScenarioSpec
from scenarios.yaml_source import MAX_BYTES, plain_scalar, read_yaml

GOOD = """\
name: two plans
model: deepseek-v2-lite
cluster: {node: h200-sxm-8, nodes: 2, inter_bandwidth: 400 Gb/s}
workload:
  synthetic:
    tokens: 4096
    skew: 3e-1
placement:
  solver: contiguous
schedule: {step_overhead: 3 us}
compare:
  placement:
    - {solver: contiguous}
    - {solver: eplb, redundant: 8}
  cluster: [{nodes: 4}, {node: other}]
"""
SOLVERS = ", ".join((*get_args(SolverName), "file"))


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A scenario's path, relative so that messages are short."""
    monkeypatch.chdir(tmp_path)
    return Path("a.yaml")


def _problems(file: Path, text: str, *overrides: str) -> list[str]:
    file.write_text(text)
    with pytest.raises(ScenarioError) as caught:
        load_scenario(file, overrides)
    return str(caught.value).splitlines()


def test_a_good_file_becomes_a_spec(file: Path) -> None:
    file.write_text(GOOD)
    loaded = load_scenario(file)
    spec = loaded.spec
    assert loaded.path == file
    assert (spec.name, spec.model, spec.cluster.nodes) == ("two plans", "deepseek-v2-lite", 2)
    assert spec.cluster.inter_bandwidth == 5e10
    assert spec.schedule.step_overhead == pytest.approx(3e-6)
    assert spec.workload.synthetic is not None
    assert spec.workload.synthetic.skew == 0.3
    assert spec.compare is not None
    assert [entry.solver for entry in spec.compare.placement] == ["contiguous", "eplb"]
    assert [(entry.node, entry.nodes) for entry in spec.compare.cluster] == [("h200-sxm-8", 4), ("other", 2)]
    assert loaded.spec == ScenarioSpec.model_validate(loaded.source.data)


def test_every_path_of_a_file_has_its_line(file: Path) -> None:
    file.write_text(GOOD)
    source = read_yaml(file)
    assert source.place(("workload", "synthetic")) == 5
    assert source.place(("workload", "synthetic", "skew")) == 7
    assert source.place(("compare", "placement", 1, "redundant")) == 14
    assert source.place(("compare", "placement", 1, "absent", "deeper")) == 14
    assert source.place(("absent",)) == 1


def test_later_stages_report_at_a_line(file: Path) -> None:
    file.write_text(GOOD)
    error = load_scenario(file).error(("model",), "no such card")
    assert str(error) == "a.yaml:2 model: no such card"
    error = load_scenario(file, ["model=x"]).error(("model",), "no such card")
    assert str(error) == "--set model: no such card"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("nodes: 2", "n_nodes: 2", "a.yaml:3 cluster.n_nodes: unknown key (did you mean 'nodes'?)"),
        (
            "nodes: 2",
            "zzz: 2",
            "a.yaml:3 cluster.zzz: unknown key (known: node, nodes, device, devices_per_node, cards, kernels, "
            "experts_slowdown, intra_bandwidth, inter_bandwidth, intra_message, inter_message, host, host_bandwidth, "
            "host_message, host_memory_bandwidth, sustained_frac, experts)",
        ),
        (
            "    - {solver: eplb, redundant",
            "    - {solver: eplb, redundent",
            "a.yaml:14 compare.placement.1.redundent: unknown key (did you mean 'redundant'?)",
        ),
        ("    skew", "    tokens", "a.yaml:7 workload.synthetic.tokens: repeated key, first on line 6 (keep one)"),
        ("400 Gb/s", "400", "a.yaml:3 cluster.inter_bandwidth: 400 has no unit; write for instance '900 GB/s'"),
        (
            "400 Gb/s",
            "400 GiB",
            "a.yaml:3 cluster.inter_bandwidth: unit 'GiB' measures bytes, not bandwidth; write for instance '900 GB/s'",
        ),
        ("400 Gb/s", "0 Gb/s", "a.yaml:3 cluster.inter_bandwidth: '0 Gb/s' must be positive"),
        ("3 us", "3e-6", "a.yaml:10 schedule.step_overhead: 3e-06 has no unit; write for instance '3 us'"),
        ("4096", "many", "a.yaml:6 workload.synthetic.tokens: expected a whole number, got 'many'"),
        ("4096", "1.5", "a.yaml:6 workload.synthetic.tokens: expected a whole number, got 1.5"),
        ("4096", "0", "a.yaml:6 workload.synthetic.tokens: must be greater than 0, got 0"),
        (
            "4096",
            "",
            "a.yaml:6 workload.synthetic.tokens: expected a whole number, got nothing "
            "(write a value or remove the key)",
        ),
        ("3e-1", "[1]", "a.yaml:7 workload.synthetic.skew: expected a number, got a list"),
        ("3e-1", ".nan", "a.yaml:7 workload.synthetic.skew: .nan is not a finite number (write a finite one)"),
        ("3e-1", "1e999", "a.yaml:7 workload.synthetic.skew: 1e999 is too large (write a smaller number)"),
        ("two plans", "5", "a.yaml:1 name: expected text, got 5 (quote it)"),
        (
            "two plans",
            "on",
            "a.yaml:1 name: on is a boolean to some YAML readers and text to others (quote it or write true/false)",
        ),
        (
            "two plans",
            "1:30",
            "a.yaml:1 name: 1:30 is a number in base 60 to some YAML readers (quote it or write a decimal number)",
        ),
        (
            "two plans",
            "010",
            "a.yaml:1 name: 010 is read differently by YAML readers (quote it or write a plain decimal number)",
        ),
        ("two plans", "!!str 5", "a.yaml:1 name: tag '!!str' is not supported (remove it; quote text)"),
        ("two plans", "*x", "a.yaml:1 name: alias *x is not supported (write the value again)"),
        (
            "  solver: contiguous",
            "  solver: epbl",
            f"a.yaml:9 placement.solver: 'epbl' is not one of {SOLVERS} (did you mean 'eplb'?)",
        ),
        ("  solver: contiguous", "  solver: 7", f"a.yaml:9 placement.solver: 7 is not one of {SOLVERS}"),
        ("\n  solver: contiguous", " contiguous", "a.yaml:8 placement: expected keys, got 'contiguous'"),
        ("model: deepseek-v2-lite", "# model", "a.yaml:1 model: missing key"),
        (
            "node: h200-sxm-8, nodes: 2",
            "node: h200-sxm-8, nodes: -1",
            "a.yaml:3 cluster.nodes: must be greater than 0, got -1",
        ),
        ("  solver: contiguous", "\tsolver: contiguous", "a.yaml:9: tab in the indentation (indent with spaces)"),
        ("name: two plans", "---\nname: a\n---", "a.yaml:3: a second document begins (keep one per file)"),
        ("{nodes: 4}", "{<<: 4}", "a.yaml:15 compare.cluster.0.<<: merge keys are not supported (write the keys out)"),
        ("{nodes: 4}", "{[1]: 4}", "a.yaml:15 compare.cluster.0: a key must be text"),
        ("{nodes: 4}", "\x01", "a.yaml:15: control character in the text (delete it)"),
    ],
)
def test_one_problem(file: Path, old: str, new: str, message: str) -> None:
    assert old in GOOD
    assert _problems(file, GOOD.replace(old, new, 1)) == [message]


def test_a_rule_of_a_section_has_the_line_of_the_section(file: Path) -> None:
    both = GOOD.replace("workload:\n", "workload:\n  trace: b.npz\n")
    assert _problems(file, both) == ["a.yaml:4 workload: give either 'trace: FILE' or 'synthetic: {...}'"]
    overlap = GOOD.replace("workload:\n", "workload:\n  steps: 4\n  split: {fit: 0.9}\n")
    message = "a.yaml:6 workload.split: fit 0.9 and evaluate 0.5 overlap: together they exceed 1"
    assert _problems(file, overlap) == [message]


def test_a_syntax_error_has_its_line(file: Path) -> None:
    lines = _problems(file, GOOD.replace("name: two plans", "name: two: plans"))
    assert len(lines) == 1
    assert lines[0].startswith("a.yaml:1: not valid YAML: mapping values are not allowed")


def test_all_problems_come_together_by_line(file: Path) -> None:
    text = GOOD.replace("name: two plans", "nme: on").replace("nodes: 2", "nodes: two").replace("3 us", "3 lightyears")
    assert _problems(file, text.replace("eplb", "elpb"), "seed=-1", "cluster.nodes=1", "workload.phase=decoding") == [
        "7 problems in a.yaml:",
        "a.yaml:1 nme: on is a boolean to some YAML readers and text to others (quote it or write true/false)",
        "a.yaml:1 name: missing key",
        "a.yaml:1 nme: unknown key (did you mean 'name'?)",
        "a.yaml:10 schedule.step_overhead: unknown unit 'lightyears' of time; write for instance '3 us'",
        f"a.yaml:14 compare.placement.1.solver: 'elpb' is not one of {SOLVERS} (did you mean 'eplb'?)",
        "--set workload.phase: 'decoding' is not one of decode, prefill, train (did you mean 'decode'?)",
        "--set seed: must be at least 0, got -1",
    ]


def test_an_error_of_a_section_is_not_repeated_for_the_entries_that_it_completes(file: Path) -> None:
    text = GOOD.replace("node: h200-sxm-8, nodes: 2", "nodes: 0, size: 3")
    assert _problems(file, text) == [
        "3 problems in a.yaml:",
        "a.yaml:3 cluster.node: missing key",
        "a.yaml:3 cluster.nodes: must be greater than 0, got 0",
        "a.yaml:3 cluster.size: unknown key (known: node, nodes, device, devices_per_node, cards, kernels, "
        "experts_slowdown, intra_bandwidth, inter_bandwidth, intra_message, inter_message, host, host_bandwidth, "
        "host_message, host_memory_bandwidth, sustained_frac, experts)",
    ]


def test_an_error_of_an_entry_itself_keeps_its_line(file: Path) -> None:
    text = GOOD.replace("nodes: 2", "nodes: 0").replace("{nodes: 4}", "{nodes: 0}")
    assert _problems(file, text) == [
        "2 problems in a.yaml:",
        "a.yaml:3 cluster.nodes: must be greater than 0, got 0",
        "a.yaml:15 compare.cluster.0.nodes: must be greater than 0, got 0",
    ]


def test_a_missing_section_is_one_problem(file: Path) -> None:
    text = GOOD.replace("cluster: {node: h200-sxm-8, nodes: 2, inter_bandwidth: 400 Gb/s}\n", "")
    assert _problems(file, text) == ["a.yaml:1 cluster: missing key"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("cluster.nodez=3", "--set cluster.nodez: unknown key (did you mean 'node'?)"),
        ("clutser.nodes=3", "--set clutser.nodes clutser: unknown key (did you mean 'cluster'?)"),
        ("cluster.nodes=many", "--set cluster.nodes: expected a whole number, got 'many'"),
        (
            "cluster.nodes=",
            "--set cluster.nodes: expected a whole number, got nothing (write a value or remove the key)",
        ),
        ("cluster.inter_bandwidth=40", "--set cluster.inter_bandwidth: 40 has no unit; write for instance '900 GB/s'"),
        (
            "compare.placement.2.solver=eplb",
            "--set compare.placement.2.solver: compare.placement is a list of 2 entries, "
            "counted from 0; '2' is none of them",
        ),
        (
            "compare.placement.0.solver=eplp",
            f"--set compare.placement.0.solver: 'eplp' is not one of {SOLVERS} (did you mean 'eplb'?)",
        ),
        (
            "compare.placement=[{solvr: eplb}]",
            "--set compare.placement compare.placement.0.solvr: unknown key (did you mean 'solver'?)",
        ),
        ("name.x=3", "--set name.x: name is a single value without keys (set name itself)"),
        ("parallel.attention.tp=2", "--set parallel.attention.tp parallel.attention.dp: missing key"),
        ("nodes", "--set nodes: expected PATH=VALUE with a path such as cluster.nodes"),
        ("cluster..nodes=1", "--set cluster..nodes: expected PATH=VALUE with a path such as cluster.nodes"),
        (
            "name=off",
            "--set name: off is a boolean to some YAML readers and text to others (quote it or write true/false)",
        ),
    ],
)
def test_wrong_overrides_name_the_option(file: Path, override: str, message: str) -> None:
    assert _problems(file, GOOD, override) == [message]


def test_overrides_change_the_scenario(file: Path) -> None:
    file.write_text(GOOD)
    overrides = [
        "cluster.nodes=8",
        "compare.placement.1.solver=greedy",
        "schedule.exchange.law=fifo",
        "seed=1",
        "seed=2",
    ]
    spec = load_scenario(file, [*overrides, "compare.cluster=[{nodes: 3}]", "schedule.step_overhead=5 us"]).spec
    assert (spec.cluster.nodes, spec.schedule.exchange.law, spec.seed) == (8, "fifo", 2)
    assert spec.schedule.step_overhead == pytest.approx(5e-6)
    assert spec.compare is not None
    assert [entry.solver for entry in spec.compare.placement] == ["contiguous", "greedy"]
    assert [entry.nodes for entry in spec.compare.cluster] == [3]
    assert load_scenario(file).spec.cluster.nodes == 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "a.yaml:1: the file is empty (write its keys)"),
        (b"# nothing\n", "a.yaml:1: the file is empty (write its keys)"),
        (b"\n- 1\n", "a.yaml:2: expected keys at top level, got a list"),
        (b"text\n", "a.yaml:1: expected keys at top level, got a single value"),
        (b"name: a\nmodel: \xff\n", "a.yaml:2: byte 0xff is not UTF-8 (save the file as UTF-8)"),
        (b"a: " + b"[" * 100_000, "a.yaml:1: nested deeper than 32 levels (write a flatter file)"),
        (b"a: " + b"[" * 33 + b"]" * 33, "a.yaml:1: nested deeper than 32 levels (write a flatter file)"),
        (b"a:\n  " + b"- " * 5000 + b"b", "a.yaml:2: nested deeper than 32 levels (write a flatter file)"),
        (b"#" * (MAX_BYTES + 1), "a.yaml: larger than 8 MiB, the limit for YAML (split the file)"),
    ],
)
def test_files_that_are_no_yaml_mapping(file: Path, content: bytes, message: str) -> None:
    file.write_bytes(content)
    with pytest.raises(ScenarioError) as caught:
        load_scenario(file)
    assert str(caught.value) == message


def test_unreadable_paths(file: Path) -> None:
    for path, message in [
        (file, "a.yaml: no such file (check the path)"),
        (Path(), ".: is a folder (give a YAML file)"),
        (Path("\0"), "\\x00: cannot be read: embedded null byte"),
    ]:
        with pytest.raises(ScenarioError) as caught:
            load_scenario(path)
        assert str(caught.value) == message


def test_a_message_has_one_line_per_problem(file: Path) -> None:
    lines = _problems(file, GOOD + '"a\\nb\\e[31m": 1\n')
    assert len(lines) == 1
    assert lines[0].startswith("a.yaml:16 a\\nb\\x1b[31m: unknown key")


def test_read_yaml_refuses_what_scan_only_notes(file: Path) -> None:
    file.write_text("a: yes\nb: {a: 1, a: 2}\n")
    with pytest.raises(ScenarioError) as caught:
        read_yaml(file)
    assert str(caught.value).splitlines() == [
        "2 problems in a.yaml:",
        "a.yaml:1 a: yes is a boolean to some YAML readers and text to others (quote it or write true/false)",
        "a.yaml:2 b.a: repeated key, first on line 2 (keep one)",
    ]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3e-6", 3e-6),
        ("1e9", 1e9),
        ("1E+3", 1000.0),
        ("-.5", -0.5),
        ("2.", 2.0),
        ("-7", -7),
        ("+7", 7),
        ("true", True),
        ("False", False),
        ("~", None),
        ("2024-01-01", "2024-01-01"),
        ("900 GB/s", "900 GB/s"),
        ("8x7b", "8x7b"),
        ("=", "="),
    ],
)
def test_plain_scalars(text: str, value: object) -> None:
    read, complaint = plain_scalar(text)
    assert complaint is None
    assert read == value
    assert type(read) is type(value)


@pytest.mark.parametrize("text", ["Yes", "OFF", "1_000", "0x10", "0b1", "08", "1:30.5", ".inf", "-.Inf", "9" * 19])
def test_plain_scalars_that_readers_disagree_about(text: str) -> None:
    assert plain_scalar(text)[1]


def test_quoted_scalars_are_text(file: Path) -> None:
    file.write_text("a: 'on'\nb: \"1:30\"\nc: '5'\nd: |\n  no\n")
    assert read_yaml(file).data == {"a": "on", "b": "1:30", "c": "5", "d": "no\n"}


CARDS = """\
links:
- name: nvlink
  kind: nvlink
  bytes_per_s: {value: 450 GB, source: data sheet, kind: datasheet}
  latency_s: {value: 3 us, source: own timing, kind: measurd}
  efficiency: {value: 0.8, source: x, kind: assumed}
devices:
- name: gpu
  kind: gpu
  memory_bytes: {value: 80 GiB, source: data sheet, kind: datasheet}
  memory_bytes_per_s: {value: 3 TB/s, source: data sheet, kind: datasheet}
  n_sms: {value: 132, source: data sheet, kind: datasheet}
  peak_flop_per_s: {fp9: {value: 1 PFLOP/s, source: data sheet, kind: datasheet}}
"""


def test_cards_are_explained_as_scenarios_are(file: Path) -> None:
    file.write_text(CARDS)
    with pytest.raises(ScenarioError) as caught:
        load_spec(file, CardSet)
    dtypes = "fp32, bf16, fp16, fp8, fp8_block, int8, int4, mxfp4, nvfp4"
    assert str(caught.value).splitlines() == [
        "4 problems in a.yaml:",
        "a.yaml:4 links.0.bytes_per_s.value: unit 'GB' measures bytes, not bandwidth; write for instance '900 GB/s'",
        "a.yaml:5 links.0.latency_s.kind: 'measurd' is not one of datasheet, measured, published, derived, assumed "
        "(did you mean 'measured'?)",
        "a.yaml:6 links.0.efficiency.source: needs at least 3 characters",
        f"a.yaml:13 devices.0.peak_flop_per_s.fp9: 'fp9' is not one of {dtypes} (did you mean 'fp8'?)",
    ]


def _loads_or_explains(path: Path, content: bytes, overrides: tuple[str, ...] = ()) -> None:
    path.write_bytes(content)
    for spec_class in (ScenarioSpec, CardSet, ModelCard):
        try:
            load_spec(path, spec_class, overrides)
        except MoesimError as error:
            assert str(error)


_TOLERANT = settings(
    max_examples=20, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)

_TEXT = st.text(alphabet="abc: \n\t-[]{},.=#&*!|>'\"%@`01eé\0\x85\u2028", max_size=40)


@_TOLERANT
@given(content=st.binary(max_size=200) | _TEXT.map(str.encode), override=_TEXT)
def test_random_bytes_never_crash(tmp_path: Path, content: bytes, override: str) -> None:
    _loads_or_explains(tmp_path / "a.yaml", content)
    _loads_or_explains(tmp_path / "a.yaml", GOOD.encode(), (f"compare.{override}", override))


@_TOLERANT
@given(seed=st.integers(min_value=0), n_changes=st.integers(min_value=1, max_value=12))
def test_mutated_files_never_crash(tmp_path: Path, seed: int, n_changes: int) -> None:
    dice = random.Random(seed)
    text = list(dice.choice([GOOD, CARDS]))
    for _ in range(n_changes):
        at = dice.randrange(len(text))
        text[at : at + dice.randrange(3)] = dice.choice(
            [*"{}[]:,-#&*!|>'\"%@` \n\t0", "", "null", "1e999", "\x85", "é"]
        )
    _loads_or_explains(tmp_path / "a.yaml", "".join(text).encode())
