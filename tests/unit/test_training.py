"""Training of a router: formulas by hand, a run that learns, resumes and repeats itself, and what is recorded of it."""

import math
from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from scenarios.errors import ScenarioError, TraceError  # noqa: E402
from traces.capture.config import MoeConfig  # noqa: E402
from traces.capture.corpus import read_domain  # noqa: E402
from traces.capture.decoder import Decoder, Recorder  # noqa: E402
from traces.capture.experts import BACKENDS, loop  # noqa: E402
from traces.capture.recipe import RECIPES, Plan, Recipe  # noqa: E402
from traces.capture.record import prompts_of, record, trace_of  # noqa: E402
from traces.capture.train import (  # noqa: E402
    Material,
    advance,
    backend_of,
    balance_loss,
    bias_step,
    draw,
    held_out_losses,
    learning_rate,
    resume,
    save_checkpoint,
    start,
    tokenise,
    unigram_entropies,
)
from traces.capture.training_run import train_and_record  # noqa: E402
from traces.routing import Provenance  # noqa: E402
from traces.storage import load_trace  # noqa: E402

CPU = torch.device("cpu")
CONFIG = MoeConfig(
    vocab_size=260,
    n_layers=2,
    hidden_size=16,
    n_heads=2,
    n_kv_heads=1,
    head_dim=8,
    n_experts=4,
    top_k=2,
    expert_intermediate_size=16,
    shared_intermediate_size=16,
    max_tokens=64,
)
TINY = Recipe(config=CONFIG, steps=40, batch=4, context_tokens=16, warmup=5, learning_rate=1e-2, backend="batched")


def domains(tmp_path):
    for name, words in {"letters": "abc def ", "digits": "12 345 "}.items():
        folder = tmp_path / name
        folder.mkdir()
        for number in range(60):
            (folder / f"{number}.txt").write_text(words * 30 + f"{number}\n")
    return [read_domain(name, [tmp_path / name]) for name in ("letters", "digits")]


@pytest.fixture
def material(tmp_path):
    return tokenise(domains(tmp_path), TINY)


def test_balance_loss_by_hand():
    # Shares 3/4, 1/4; mean scores 0.7, 0.3: 2 (0.75 x 0.7 + 0.25 x 0.3) = 1.2.
    scores = torch.tensor([[0.8, 0.2], [0.6, 0.4]])
    assert balance_loss(scores, torch.tensor([3, 1])).item() == pytest.approx(1.2)
    assert balance_loss(torch.full((5, 4), 0.25), torch.tensor([5, 5, 5, 5])).item() == pytest.approx(1.0)


def test_balance_loss_pushes_scores_of_busy_experts_down():
    logits = torch.zeros(1, 2, requires_grad=True)
    balance_loss(logits.softmax(dim=-1), torch.tensor([3, 1])).backward()
    assert logits.grad[0, 0] > 0 > logits.grad[0, 1]


def test_bias_steps_by_hand():
    assert bias_step(torch.tensor([6, 2, 4]), 0.01).tolist() == pytest.approx([-0.01, 0.01, 0.0])


def test_learning_rate_rises_stays_and_falls_and_can_be_lengthened():
    rates = [learning_rate(TINY, step) for step in range(TINY.steps)]
    assert rates[:6] == pytest.approx([0.002, 0.004, 0.006, 0.008, 0.01, 0.01])
    assert rates[31] == pytest.approx(0.01)
    assert rates[36] == pytest.approx(0.01 * (0.1 + 0.9 * 4 / 8))
    longer = [learning_rate(replace(TINY, steps=80), step) for step in range(32)]
    assert longer == rates[:32]


def test_batches_hold_every_domain_equally_often():
    tokens = [np.full(50, domain, np.uint16) for domain in range(2)]
    batch = draw(tokens, TINY, np.random.default_rng(0))
    assert batch.shape == (4, 17)
    assert np.bincount(batch[:, 0]).tolist() == [2, 2]


@pytest.mark.slow
@pytest.mark.parametrize("gating", ["softmax", "sigmoid"])
def test_a_run_learns_more_than_frequencies_of_tokens(gating, material):
    recipe = replace(TINY, steps=80, config=replace(CONFIG, gating=gating))
    run = start(recipe, CPU)
    before = held_out_losses(run.model, material, recipe)
    advance(run, material, recipe.steps)
    after, unigrams = held_out_losses(run.model, material, recipe), unigram_entropies(material)
    for name in ("letters", "digits"):
        assert before[name] == pytest.approx(math.log(CONFIG.vocab_size), rel=0.05)
        assert after[name] < 0.5 * unigrams[name]
    moved = [float(block.router.bias.abs().max()) for block in run.model.layers]
    assert (min(moved) > 0) == (gating == "sigmoid")


@pytest.mark.slow
def test_a_resumed_run_is_the_same_run_and_another_seed_is_not(material, tmp_path):
    whole, first, other = start(TINY, CPU), start(TINY, CPU), start(replace(TINY, seed=1), CPU)
    advance(whole, material, 12)
    advance(first, material, 7)
    save_checkpoint(first, material, tmp_path / "c.pt")
    second = resume(TINY, material, tmp_path / "c.pt", CPU)
    advance(second, material, 12)
    advance(other, material, 12)
    assert second.log == whole.log
    assert other.log != whole.log
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, second.model.state_dict()[name])
    with pytest.raises(ScenarioError, match="another recipe or corpus"):
        resume(replace(TINY, seed=1), material, tmp_path / "c.pt", CPU)


def test_experts_of_a_half_recipe_run_in_bfloat16_on_a_gpu_alone():
    seen = []

    def spy(tokens, routing, weights):
        seen.append((tokens.dtype, routing.weights.dtype, weights.up.dtype, weights.down.dtype))
        return loop(tokens, routing, weights)

    recipe = replace(TINY, half=True, backend="loop")
    block, tokens = start(recipe, CPU).model.layers[0], torch.randn(1, 5, 16)
    with torch.inference_mode(), pytest.MonkeyPatch.context() as patch:
        patch.setitem(BACKENDS, "loop", spy)
        normed, routing, _ = block.route(tokens)
        exact = backend_of(recipe, CPU)(normed, routing, block.experts)
        rough = backend_of(recipe, torch.device("cuda"))(normed, routing, block.experts)
    assert seen == [(torch.float32,) * 4, (torch.bfloat16,) * 4]
    torch.testing.assert_close(rough.float(), exact, atol=1e-5, rtol=0.1)


def test_unigram_entropy_of_equally_frequent_tokens():
    vocabulary = tokenise([], TINY).vocabulary
    tokens = np.arange(256, dtype=np.uint16)
    found = unigram_entropies(Material(vocabulary=vocabulary, train={"a": tokens}, test={"a": tokens[:9]}))
    assert found["a"] == pytest.approx(math.log(256))


def step_by_step(model, prompt, new_tokens):
    """Greedy tokens and the experts of each, from whole passes without a cache."""
    tokens, ids = prompt.tolist(), []
    for _ in range(new_tokens):
        hidden = model(torch.tensor([tokens]))
        tokens.append(int(model.logits(hidden[:, -1]).argmax()))
        recorder = Recorder()
        model(torch.tensor([tokens]), recorder=recorder)
        ids.append(torch.stack([layer[-1] for layer in recorder.ids[0]]))
    return tokens[len(prompt) :], torch.stack(ids, dim=-1).numpy()


def test_greedy_decode_equals_recomputation_without_a_cache():
    torch.manual_seed(3)
    model = Decoder(CONFIG).eval()
    for parameter in model.parameters():  # fresh weights of 0.02 leave all scores alike
        parameter.data.mul_(10 if parameter.dim() > 1 else 1)
    prompts = np.random.default_rng(0).integers(0, 256, (2, 6))
    prefill, decode, tokens = record(model, prompts, 5)
    assert prefill.shape == (2, 2, 2, 6)
    with torch.inference_mode():
        for request in range(2):
            expected_tokens, expected_ids = step_by_step(model, prompts[request], 5)
            assert tokens[request].tolist() == expected_tokens
            assert np.array_equal(decode[:, :, request], expected_ids)
    assert len(np.unique(decode)) > 1


def test_traces_hold_requests_in_order_with_their_domains():
    rng = np.random.default_rng(0)
    parts = {name: rng.integers(0, 4, (2, 1, 3, 5), dtype=np.uint8) for name in ("a", "b")}
    origin = Provenance(model="m", source="s", kind="captured")
    trace = trace_of(parts, 6, "decode", origin, 4)
    assert trace.labels == ("a", "a", "a", "b", "b", "b")
    assert trace.offsets.tolist() == list(range(0, 31, 5))
    assert trace.positions[:6].tolist() == [6, 7, 8, 9, 10, 6]
    assert np.array_equal(trace.ids[:, :, 15:20], parts["b"][:, :, 0])


def test_prompts_do_not_overlap_and_need_enough_text():
    plan = Plan(requests=3, prompt_tokens=4, new_tokens=1)
    assert prompts_of(np.arange(14, dtype=np.uint16), plan).tolist() == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
    with pytest.raises(TraceError, match="11 held-out tokens hold no 3 prompts of 4"):
        prompts_of(np.arange(11, dtype=np.uint16), plan)


@pytest.mark.slow
def test_a_run_in_a_folder_leaves_traces_losses_and_log(tmp_path, capsys):
    plan = Plan(requests=2, prompt_tokens=8, new_tokens=3)
    recipe = replace(TINY, steps=3)
    train_and_record(domains(tmp_path), recipe, plan, tmp_path, CPU)
    log = (tmp_path / "log.csv").read_text().splitlines()
    assert log[0].startswith("step,tokens,loss_nats") and len(log) == 4
    assert len((tmp_path / "losses.csv").read_text().splitlines()) == 3
    prefill, decode = load_trace(tmp_path / "prefill.npz"), load_trace(tmp_path / "decode.npz")
    assert (prefill.n_tokens, decode.n_tokens) == (2 * 2 * 8, 2 * 2 * 3)
    assert int(decode.positions.min()) == 8
    assert decode.labels == ("digits", "digits", "letters", "letters")
    first = (tmp_path / "log.csv").read_text()
    train_and_record(domains_again(tmp_path), recipe, plan, tmp_path, CPU)
    assert (tmp_path / "log.csv").read_text() == first
    assert capsys.readouterr().out.count("step 3:") == 1  # the second call found the run finished


def domains_again(tmp_path):
    return [read_domain(name, [tmp_path / name]) for name in ("letters", "digits")]


def test_recipes_state_what_they_are():
    assert RECIPES["cpu-small"].n_tokens == 600 * 8 * 256
    large = RECIPES["gpu-large"].config
    assert large.n_layers >= 8
    assert (large.n_experts, large.top_k) == (64, 8)
    with pytest.raises(ScenarioError, match="exceed the model's"):
        replace(TINY, context_tokens=65)
    with pytest.raises(ScenarioError, match="steps is 0"):
        replace(TINY, steps=0)
