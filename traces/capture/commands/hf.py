"""`capture hf`: routing of a Hugging Face model."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from scenarios.errors import MoesimError
from scenarios.files import check_file, write_text

if TYPE_CHECKING:
    from traces.capture.huggingface import Capture
    from traces.capture.local_models import LocalModel
    from traces.capture.prompts import Prompt
    from traces.routing import Phase

HELP = "Record the routing of a Hugging Face MoE model."
PHASES = ("mixed", "prefill", "decode", "both")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument("model", metavar="MODEL_OR_PATH", help="folder, or name of a model in the Hugging Face cache")
    parser.add_argument(
        "--prompts",
        "--token-ids",
        type=Path,
        required=True,
        metavar="FILE",
        help="text, a prompt a line or block; or .jsonl with prompt, text, messages or ids (which need no tokenizer)",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="TRACE.npz", help="trace to write")
    parser.add_argument("--new-tokens", type=int, default=0, metavar="N", help="greedy tokens after each prompt [0]")
    parser.add_argument(
        "--phase", choices=PHASES, help="tokens to write; both: two files [mixed, or prefill if N is 0]"
    )
    parser.add_argument("--batch-size", type=int, default=1, metavar="N", help="prompts that run together [1]")
    parser.add_argument("--max-prompt-tokens", type=int, metavar="N", help="cut prompts to their first N tokens")
    parser.add_argument("--label-field", default="label", metavar="KEY", help="key of the label in .jsonl [label]")
    parser.add_argument("--gate-weights", action="store_true", help="also record gate weights, float16")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="[cpu]")
    parser.add_argument("--dtype", choices=("auto", "float32", "bfloat16", "float16"), default="auto", help="[auto]")


def run(options: argparse.Namespace) -> None:
    """Run the prompts and write trace and config; prints what was written. Raises MoesimError."""
    _check_numbers(options)
    targets = _targets(options)
    config_target = options.out.with_suffix(".config.json")
    for path in (*targets.values(), config_target):
        check_file(path)
    from traces.capture.prompts import encode, read_prompts

    prompts = read_prompts(options.prompts, options.label_field)
    from traces.capture.local_models import load_model

    local = load_model(options.model, options.device, options.dtype)
    captured = _capture(local, encode(prompts, local.tokenizer, options.max_prompt_tokens), options)
    _write(captured, targets, prompts, local, options)
    write_text(local.config_path.read_text(encoding="utf-8"), config_target)
    print(f"{config_target}: shape of the model; in a scenario:")
    print(f"  model: {config_target}\n  workload: {{trace: {next(iter(targets.values()))}}}", flush=True)


def _check_numbers(options: argparse.Namespace) -> None:
    for name, least in (("new_tokens", 0), ("batch_size", 1), ("max_prompt_tokens", 1)):
        value = getattr(options, name)
        if value is not None and value < least:
            raise MoesimError(f"--{name.replace('_', '-')} {value}: must be at least {least}")
    if options.new_tokens == 0 and options.phase in ("decode", "mixed", "both"):
        raise MoesimError(f"--phase {options.phase} needs tokens to decode; add --new-tokens N")


def _targets(options: argparse.Namespace) -> dict[Phase, Path]:
    """File to write for each phase."""
    if options.out.suffix != ".npz":
        raise MoesimError(f"--out {options.out}: the name of a trace must end in .npz")
    if options.phase == "both":
        out = options.out
        return {phase: out.with_name(f"{out.stem}-{phase}{out.suffix}") for phase in ("prefill", "decode")}
    default = "mixed" if options.new_tokens else "prefill"
    return {cast("Phase", options.phase or default): options.out}


def _capture(local: LocalModel, prompts: Sequence[Sequence[int]], options: argparse.Namespace) -> Capture:
    import torch

    from traces.capture.huggingface import Generation, capture

    generation = Generation(
        new_tokens=options.new_tokens, batch_size=options.batch_size, stop_ids=_stop_ids(local.model)
    )
    try:
        return capture(local.model, prompts, generation)
    except torch.OutOfMemoryError:
        raise MoesimError(
            f"the memory of {options.device} does not suffice; take a smaller --batch-size or --max-prompt-tokens"
        ) from None


def _stop_ids(model: Any) -> frozenset[int]:
    """Tokens at which the model's own generation ends."""
    ids = model.generation_config.eos_token_id
    return frozenset([] if ids is None else [ids] if isinstance(ids, int) else ids)


def _write(
    captured: Capture,
    targets: dict[Phase, Path],
    prompts: Sequence[Prompt],
    local: LocalModel,
    options: argparse.Namespace,
) -> None:
    """Write the trace of each phase."""
    from traces.capture.huggingface import trace_of
    from traces.storage import save_trace

    labels = [prompt.label for prompt in prompts if prompt.label is not None]
    origin = _provenance(captured, local, options)
    for phase, path in targets.items():
        trace = trace_of(captured, phase, origin, labels, gate_weights=options.gate_weights)
        save_trace(trace, path)
        print(
            f"{path}: {trace.n_tokens:,} tokens ({phase}) of {trace.n_sequences} requests, "
            f"{trace.n_layers} MoE layers, {trace.n_experts} experts, top-{trace.top_k}"
        )


def _provenance(captured: Capture, local: LocalModel, options: argparse.Namespace) -> Any:
    import torch
    import transformers

    from traces.routing import Provenance

    dtype = str(local.model.dtype).removeprefix("torch.")
    n_prompt = sum(len(request.prompt) for request in captured.requests)
    n_generated = sum(len(request.generated) for request in captured.requests)
    early = sum(len(request.generated) < options.new_tokens for request in captured.requests)
    notes = [
        f"prompts: {len(captured.requests)} of {options.prompts.name}, {n_prompt} tokens",
        f"decode: {n_generated} tokens, greedy; {early} requests ended before {options.new_tokens}",
    ]
    if options.max_prompt_tokens:
        notes.append(f"prompts were cut to their first {options.max_prompt_tokens} tokens")
    versions = f"transformers {transformers.__version__}, torch {torch.__version__}"
    source = f"moesim capture hf: {versions}, {options.device}, {dtype}"
    return Provenance(model=local.name, source=source, kind="captured", notes=tuple(notes))
