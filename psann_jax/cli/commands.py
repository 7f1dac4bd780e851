"""All commands in one table, and how a command line finds its command."""

import importlib
import sys
from collections.abc import Sequence

from psann_jax.cli.flags import fail
from psann_jax.config.names import nearest

# What a user wants to do -> command -> what it does. Command "a b" is psann_jax.cli.a.b.
COMMANDS = {
    "Train": {
        "prepare": "prepares the text of a config file ahead of training",
        "train": "trains the experiment of a config file, or resumes it",
    },
    "Use a trained run": {
        "generate": "continues prompts",
        "serve": "answers requests of OpenAI's API, and has a page to try models side by side",
        "evaluate": "loss, perplexity and accuracy on a text",
        "solve": "solves Sudoku puzzles",
        "lm_eval": "scores on tasks of lm_eval",
        "convert": "converts weights between runs and .safetensors files, and reads PyTorch files",
    },
    "Compare": {
        "sweep": "trains all runs of a sweep and reports which one is better",
        "make_eval": "writes a fixed evaluation text",
    },
    "Look inside a run": {
        "samples": "continues fixed prompts, as reports of sweeps show them",
        "coordinates": "the token coordinates of a gravity model as an interactive page",
        "sine": "amplitude, frequency and damping before and after training",
        "stability": "what becomes of Sudoku solutions over many iterations",
    },
    "Measure": {
        "bench throughput": "training tokens/s, alone or against another implementation",
        "bench generate": "generated tokens/s, alone or against another implementation",
        "bench serve": "the server's tokens/s for many clients, alone or against another implementation",
        "bench memory": "memory of a training step by batch size and rematerialisation",
        "bench kernels": "this device's kernels against the plain implementations, at full size",
        "bench accelerator": "checks and measures one GPU or TPU within a time limit",
        "bench compile": "what a run would do on TPUs or GPUs that are not there",
        "bench layout": "how arrays, memory and collectives are divided over a mesh",
        "bench devices": "cost of data parallelism on simulated CPU devices",
        "bench scaling": "estimated efficiency on a large cluster",
        "bench start": "seconds from the start of training to its first step",
    },
    "Check": {
        "selftest": "checks that this machine trains, divides, generates and resumes correctly",
    },
}
_NAMES = [name for group in COMMANDS.values() for name in group]

# Commands of earlier versions and what does their work now.
_MOVED = {
    "validate": "selftest",
    "screening": "sweep",
    "bench sweep": "sweep",
    "bench screening": "sweep",
    "bench make_eval": "make_eval",
}


def dispatch(argv: Sequence[str]) -> None:
    """Runs the command that the first argument names, or the first two in the case of bench."""
    size = 2 if argv[:1] == ["bench"] else 1
    prefix = "bench " if size == 2 else ""
    last = argv[size - 1] if len(argv) >= size else ""
    if not last:
        print(overview(prefix), file=sys.stderr)
        raise SystemExit(2)
    if last in ("-h", "--help"):
        print(overview(prefix))
        return
    if last.startswith("-"):
        fail(f"{last}: comes before the command; psann-jax {prefix}--help lists the commands")
    name = prefix + last
    if name in _MOVED:
        fail(f"{name}: is now psann-jax {_MOVED[name]}")
    if name not in _NAMES:
        valid = [known.removeprefix(prefix) for known in _NAMES if known.startswith(prefix)]
        hint = nearest(last, valid) or f"; psann-jax {prefix}--help lists the commands"
        fail(f"{name}: unknown command{hint}")
    module = importlib.import_module(f"psann_jax.cli.{name.replace(' ', '.')}")
    module.main(argv[size:])


def overview(prefix: str = "") -> str:
    """All commands with that prefix, by what a user wants to do; the text of --help."""
    lines = [f"usage: psann-jax {prefix}COMMAND [--FLAG=VALUE ...]", "", "COMMAND --help lists the flags of a command."]
    for title, group in COMMANDS.items():
        chosen = {name: text for name, text in group.items() if name.startswith(prefix)}
        if chosen:
            lines += ["", f"{title}:", *(f"  {name:<18}{text}" for name, text in chosen.items())]
    return "\n".join(lines)
