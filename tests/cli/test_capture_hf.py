"""`moesim capture hf` as a user runs it, on a tiny model in a folder of its own."""

import json
import socket

import numpy as np
import pytest

from scenarios.errors import MoesimError
from scenarios.huggingface import read_config
from traces.capture.commands import main
from traces.storage import load_trace

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
from tests.huggingface_models import tiny_model  # noqa: E402

pytestmark = pytest.mark.slow
LINES = '{"ids": [5, 7, 9], "label": "a"}\n{"ids": [3, 4, 8, 11], "label": "b"}\n'


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a tiny Qwen3-MoE model without tokenizer in `tiny`."""
    folder = tmp_path_factory.mktemp("models")
    tiny_model("qwen3_moe").save_pretrained(folder / "tiny")
    return folder


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text(LINES)
    return path


def hf(*arguments):
    main(["hf", *map(str, arguments)], "moesim capture")


def test_trace_and_config_are_what_a_scenario_needs(folder, prompts, tmp_path, capsys):
    out = tmp_path / "tiny.npz"
    hf(folder / "tiny", "--token-ids", prompts, "--out", out, "--new-tokens", 4, "--gate-weights")
    trace = load_trace(out)
    card = read_config(tmp_path / "tiny.config.json")
    assert (trace.n_experts, trace.top_k, trace.n_layers) == (card.n_experts, card.top_k, 1)
    assert (trace.phase, trace.labels, trace.offsets.tolist()) == ("mixed", ("a", "b"), [0, 7, 15])
    assert trace.positions.tolist() == [*range(7), *range(8)]
    assert trace.moe_layers == (1,) and card.name == "tiny"
    assert (np.diff(trace.weights.astype(np.float32), axis=1) <= 0).all()
    origin = trace.provenance
    assert (origin.model, origin.kind) == ("tiny", "captured")
    assert "2 of prompts.jsonl, 7 tokens" in origin.notes[0] and "8 tokens, greedy" in origin.notes[1]
    assert f"workload: {{trace: {out}}}" in capsys.readouterr().out


def test_two_files_hold_what_the_mixed_one_holds(folder, prompts, tmp_path):
    common = (folder / "tiny", "--prompts", prompts, "--new-tokens", 3)
    hf(*common, "--out", tmp_path / "all.npz")
    hf(*common, "--out", tmp_path / "t.npz", "--phase", "both", "--batch-size", 2)
    mixed, prefill, decode = (load_trace(tmp_path / name) for name in ("all.npz", "t-prefill.npz", "t-decode.npz"))
    assert (prefill.phase, decode.phase) == ("prefill", "decode")
    for trace in (prefill, decode):
        for s in range(2):
            own = slice(trace.offsets[s], trace.offsets[s + 1])
            whole = mixed.ids[:, :, mixed.offsets[s] : mixed.offsets[s + 1]]
            assert np.array_equal(trace.ids[:, :, own], whole[:, :, trace.positions[own]])


def test_a_text_is_run_through_the_models_tokenizer(tmp_path):
    tokenizers = pytest.importorskip("tokenizers")
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"[UNK]": 0, "one": 5, "two": 6}, "[UNK]"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    named = tmp_path / "named"
    tiny_model("mixtral").save_pretrained(named)
    transformers.PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]").save_pretrained(named)
    (tmp_path / "p.txt").write_text("one two one two\ntwo two\n")
    hf(named, "--prompts", tmp_path / "p.txt", "--out", tmp_path / "t.npz", "--max-prompt-tokens", 3)
    trace = load_trace(tmp_path / "t.npz")
    assert (trace.phase, trace.offsets.tolist()) == ("prefill", [0, 3, 5])
    assert "first 3 tokens" in trace.provenance.notes[2]


def test_a_model_that_is_not_here_is_not_fetched(prompts, tmp_path, monkeypatch):
    def connect(*_):
        raise AssertionError("capture went to the network")

    monkeypatch.setattr(socket.socket, "connect", connect)
    for name in ("nobody/nothing", str(tmp_path / "gone"), "a/b/c"):
        with pytest.raises(MoesimError, match=rf"{name}: is no folder, and not in the Hugging Face cache"):
            hf(name, "--prompts", prompts, "--out", tmp_path / "t.npz")


def dense(folder):
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    return "'llama' is dense or unknown to capture"


def broken(folder):
    (folder / "config.json").write_text("{")
    return "cannot be loaded"


def empty(_folder):
    return "holds no config.json"


def weightless(folder):
    tiny_model("mixtral").config.save_pretrained(folder)
    return "cannot be loaded"


@pytest.mark.parametrize("damage", [dense, broken, empty, weightless])
def test_folders_that_hold_no_usable_model(damage, prompts, tmp_path):
    (tmp_path / "model").mkdir()
    message = damage(tmp_path / "model")
    with pytest.raises(MoesimError, match=message):
        hf(tmp_path / "model", "--prompts", prompts, "--out", tmp_path / "t.npz")
    assert not (tmp_path / "t.npz").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--new-tokens", "-1"], "--new-tokens -1: must be at least 0"),
        (["--batch-size", "0"], "--batch-size 0: must be at least 1"),
        (["--max-prompt-tokens", "0"], "--max-prompt-tokens 0: must be at least 1"),
        (["--phase", "decode"], "--phase decode needs tokens to decode; add --new-tokens N"),
        (["--new-tokens", "126"], "exceed the model's context of 128"),
        (["--out", "nowhere/t.npz"], "there is no folder nowhere"),
        (["--out", "t"], "must end in .npz"),
    ],
)
def test_options_that_cannot_be_met(options, message, folder, prompts, tmp_path):
    with pytest.raises(MoesimError, match=message):
        hf(folder / "tiny", "--prompts", prompts, "--out", tmp_path / "t.npz", *options)


def test_a_machine_without_cuda_says_so(folder, prompts, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(MoesimError, match="torch sees no CUDA device; take --device cpu"):
        hf(folder / "tiny", "--prompts", prompts, "--out", tmp_path / "t.npz", "--device", "cuda")


def test_memory_that_does_not_suffice_is_not_a_bug(folder, prompts, tmp_path, monkeypatch):
    def exhausted(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("traces.capture.huggingface.capture", exhausted)
    with pytest.raises(MoesimError, match="memory of cpu does not suffice; take a smaller --batch-size"):
        hf(folder / "tiny", "--prompts", prompts, "--out", tmp_path / "t.npz")


def test_prompts_of_texts_need_a_tokenizer(folder, tmp_path):
    (tmp_path / "p.txt").write_text("hello\n")
    with pytest.raises(MoesimError, match="comes without a tokenizer"):
        hf(folder / "tiny", "--prompts", tmp_path / "p.txt", "--out", tmp_path / "t.npz")
