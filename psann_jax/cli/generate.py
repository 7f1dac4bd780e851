"""Text from a trained run: psann-jax generate --workdir=RUN [--prompt="Once upon a time"].

Without a prompt it reads prompts from the terminal, one a line, or one prompt from a pipe.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from psann_jax.cli.run_flags import RunParser, load_options, run_command
from psann_jax.utils.errors import UserError

if TYPE_CHECKING:
    from psann_jax.sample.text import Completion, Speed, TextSampler

_ENDINGS = {
    "eos": "the model ended the text",
    "stop": "a stop string ended the text",
    "length": "--max_new_tokens reached",
    "context": "the model's context is full; --overflow=slide goes on",
}

_SAMPLING = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
_OPTIONS = ("max_new_tokens", "stop", "seed", "num_samples", "overflow", "batch_size")


def main(argv: Sequence[str]) -> None:
    """Prints text to standard output, facts about it to standard error."""
    flags = _parse(argv)
    prompts = _prompts(flags)
    # Imported late, so that a mistake on the command line is told at once.
    from psann_jax.runs.restore import load_text_run
    from psann_jax.sample.next_token import Sampling
    from psann_jax.sample.text import TextSampler

    sampling = Sampling(**{name: getattr(flags, name) for name in _SAMPLING})
    sampling.check()
    options = {"sampling": sampling, **{name: getattr(flags, name) for name in _OPTIONS}}
    run = load_text_run(flags.workdir, flags.checkpoint, **load_options(flags))
    print(f"{flags.workdir}: step {run.step}", file=sys.stderr)
    sampler = TextSampler(run.sampler(), run.tokenizer)
    if prompts is None:
        _converse(sampler, options)
    elif flags.json:
        _print_json(sampler.complete(prompts, **options), flags.logprobs)
    elif len(prompts) * flags.num_samples == 1:
        _stream(sampler, prompts[0], options)
    else:
        _print_all(sampler.complete(prompts, **options), len(prompts) * flags.num_samples)
    if sampler.speed.tokens:
        print(describe(sampler.speed), file=sys.stderr)


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = RunParser(
        "psann_jax.cli.generate", "Continues prompts with the network of a trained run.", precision="auto"
    )
    add = parser.add_argument
    add("--prompt", metavar="TEXT", help="what to continue; default: ask on the terminal, or read standard input")
    add("--prompts_file", metavar="FILE", help="prompts, one a line; an empty line is an empty prompt")
    add("--max_new_tokens", type=int, default=128, metavar="N", help="at most; default 128")
    add("--temperature", type=float, default=1.0, metavar="T", help="0: the most probable token; default 1")
    add("--top_k", type=int, default=0, metavar="K", help="only the K most probable tokens; default 0, all")
    add("--top_p", type=float, default=0.9, metavar="P", help="only the most probable that reach share P; default 0.9")
    add("--min_p", type=float, default=0.0, metavar="P", help="only those P as probable as the first; default 0")
    add("--repetition_penalty", type=float, default=1.0, metavar="F", help="above 1 against repetition; default 1")
    add("--stop", action="append", default=[], metavar="TEXT", help="ends a text where it occurs; can be repeated")
    add("--seed", type=int, default=0, metavar="N", help="the same one gives the same text; default 0")
    add("--num_samples", type=int, default=1, metavar="N", help="continuations of each prompt; default 1")
    add("--batch_size", type=int, default=8, metavar="N", help="texts produced at once; default 8")
    add(
        "--overflow",
        choices=("stop", "slide"),
        default="stop",
        help="when the context is full: stop, or go on from its last half; default stop",
    )
    add("--json", action="store_true", help="one JSON object a line: prompt, text, tokens, finish")
    add("--logprobs", action="store_true", help="with --json, also logprobs: each token's by the model, unfiltered")
    flags = parser.parse_strictly(argv)
    if flags.prompt is not None and flags.prompts_file is not None:
        parser.error("--prompts_file: cannot be used together with --prompt")
    if flags.logprobs and not flags.json:
        parser.error("--logprobs: has no effect without --json")
    return flags


def _prompts(flags: argparse.Namespace) -> list[str] | None:
    """The prompts that were given; None to ask for them on the terminal."""
    if flags.prompt is not None:
        return [flags.prompt]
    if flags.prompts_file is not None:
        return _lines(Path(flags.prompts_file))
    if not sys.stdin.isatty():
        return [sys.stdin.read().removesuffix("\n")]
    if flags.json or flags.num_samples != 1:
        raise UserError("--prompt: is missing; --json and --num_samples need --prompt or --prompts_file")
    return None


def _lines(path: Path) -> list[str]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "is not UTF-8 text"
        raise UserError(f"{path}: {reason}") from error
    if not text:
        raise UserError(f"{path}: is empty, needs a prompt on each line")
    return text.removesuffix("\n").split("\n")


def _show(index: int, piece: str) -> None:
    del index
    print(piece, end="", flush=True)


def _stream(sampler: "TextSampler", prompt: str, options: dict[str, Any]) -> None:
    print(prompt, end="", flush=True)
    (completion,) = sampler.complete([prompt], on_text=_show, **options)
    print(flush=True)
    print(_ENDINGS[completion.finish], file=sys.stderr)


def _converse(sampler: "TextSampler", options: dict[str, Any]) -> None:
    """Continues what is typed, line by line, until the end of the input; Ctrl-C ends the text that is coming."""
    print("a prompt a line; Ctrl-C ends a text, Ctrl-D ends all", file=sys.stderr)
    while True:
        try:
            prompt = input("> ")
        except EOFError:
            print()
            return
        try:
            _stream(sampler, prompt, options)
        except KeyboardInterrupt:
            print()
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)


def _print_all(completions: Iterator["Completion"], n: int) -> None:
    for number, completion in enumerate(completions, start=1):
        print(f"--- {number} of {n}: {_ENDINGS[completion.finish]}")
        print(completion.prompt + completion.text, flush=True)


def _print_json(completions: Iterator["Completion"], logprobs: bool) -> None:
    for c in completions:
        content = {"prompt": c.prompt, "text": c.text, "tokens": c.tokens, "finish": c.finish}
        print(json.dumps({**content, "logprobs": c.logprobs} if logprobs else content), flush=True)


def describe(speed: "Speed") -> str:
    """How fast text came, in one line."""
    rate = f", then {speed.later_tokens / speed.later_s:,.1f} tokens/s" if speed.later_tokens else ""
    return f"{speed.tokens:,} tokens; first tokens after {speed.first_s:.2f} s, compilation included{rate}"


if __name__ == "__main__":
    run_command(main)
