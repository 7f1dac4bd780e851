"""Generates text with a trained run: psann-jax generate --workdir=RUN [--prompt="Once upon a time"].

Without --prompt and --prompts_file it reads prompts line by line from the terminal, or one prompt from a pipe.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, get_args

from psann_jax.cli.flags import RunParser, load_options
from psann_jax.sample.settings import GenerationOptions, Overflow, Sampling
from psann_jax.utils.errors import UserError
from psann_jax.utils.files import storage_errors

if TYPE_CHECKING:
    from psann_jax.sample.text import Completion, Speed, TextSampler

_ENDINGS = {
    "eos": "the model ended the text",
    "stop": "a stop string ended the text",
    "length": "--max_new_tokens reached",
    "context": "the model's context is full; --overflow=slide continues",
}

_Settings = TypeVar("_Settings", Sampling, GenerationOptions)


def main(argv: Sequence[str]) -> None:
    """Prints text to standard output, and the step and the speed to standard error."""
    flags = _parse(argv)
    sampling, options = _from_flags(Sampling, flags), _from_flags(GenerationOptions, flags)
    sampling.check()
    options.check()
    prompts = _read_prompts(flags)
    # Imported here, so that errors in the command line are reported before JAX loads.
    from psann_jax.runs.restore import load_text_run
    from psann_jax.sample.text import TextSampler

    run = load_text_run(flags.workdir, flags.checkpoint, **load_options(flags))
    print(f"{flags.workdir}: step {run.step}", file=sys.stderr)
    sampler = TextSampler(run.sampler(), run.tokenizer)
    if prompts is None:
        _run_dialogue(sampler, sampling, options)
    elif flags.json:
        _print_json(sampler.complete(prompts, sampling, options), flags.logprobs)
    elif len(prompts) * options.num_samples == 1:
        _stream(sampler, prompts[0], sampling, options)
    else:
        _print_all(sampler.complete(prompts, sampling, options), len(prompts) * options.num_samples)
    if sampler.speed.tokens:
        print(describe(sampler.speed), file=sys.stderr)


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = RunParser("generate", "Continues prompts with the network of a trained run.", precision="auto")
    add, defaults = parser.add_argument, {**asdict(Sampling()), **asdict(GenerationOptions())}

    def add_setting(name: str, kind: type, metavar: str, help_text: str) -> None:
        value = defaults[name]
        add(f"--{name}", type=kind, default=value, metavar=metavar, help=f"{help_text}; default {value}")

    add("--prompt", metavar="TEXT", help="the text to continue; default: ask on the terminal, or read standard input")
    add("--prompts_file", metavar="FILE", help="prompts, one per line; an empty line is an empty prompt")
    add_setting("max_new_tokens", int, "N", "most tokens to generate per text")
    add_setting("temperature", float, "T", "divides the logits; 0 takes the most probable token")
    add_setting("top_k", int, "K", "choose from the K most probable tokens; 0 from all")
    add_setting("top_p", float, "P", "choose from the most probable tokens whose probabilities sum to P; 1 from all")
    add_setting("min_p", float, "P", "choose from tokens at least P times as probable as the best one; 0 from all")
    add_setting("repetition_penalty", float, "F", "above 1 makes tokens that occurred before less probable")
    add("--stop", action="append", default=[], metavar="TEXT", help="string that ends a text; can be repeated")
    add_setting("seed", int, "N", "the same seed gives the same text")
    add_setting("num_samples", int, "N", "texts to generate per prompt")
    add_setting("batch_size", int, "N", "texts generated at once")
    add(
        "--overflow",
        choices=get_args(Overflow),
        default=defaults["overflow"],
        help="when the context is full: slide continues from its last half (and truncates a prompt that is too long), "
        f"stop ends the text; default {defaults['overflow']}",
    )
    add("--json", action="store_true", help="print one JSON object per text: prompt, text, tokens, finish")
    add("--logprobs", action="store_true", help="with --json, add the log-probability of each token, before filters")
    flags = parser.parse_strictly(argv)
    if flags.prompt is not None and flags.prompts_file is not None:
        parser.error("--prompts_file: cannot be used together with --prompt")
    if flags.logprobs and not flags.json:
        parser.error("--logprobs: has no effect without --json")
    flags.stop = tuple(flags.stop)
    return flags


def _from_flags(settings: type[_Settings], flags: argparse.Namespace) -> _Settings:
    """Makes a settings dataclass from the flags that have the names of its fields."""
    given: dict[str, Any] = {f.name: getattr(flags, f.name) for f in fields(settings) if hasattr(flags, f.name)}
    return settings(**given)


def _read_prompts(flags: argparse.Namespace) -> list[str] | None:
    """Returns the given prompts, or None to ask for them on the terminal."""
    if flags.prompt is not None:
        return [flags.prompt]
    if flags.prompts_file is not None:
        return _read_lines(Path(flags.prompts_file))
    if sys.stdin is None:  # closed
        raise UserError("--prompt: is missing; standard input is closed, so give --prompt or --prompts_file")
    if not sys.stdin.isatty():
        return [_decode(sys.stdin.buffer.read(), "standard input").removesuffix("\n")]
    if flags.json or flags.num_samples != 1:
        raise UserError("--prompt: is missing; --json and --num_samples need --prompt or --prompts_file")
    return None


def _read_lines(path: Path) -> list[str]:
    with storage_errors(path, "read"):
        content = path.read_bytes()
    text = _decode(content, str(path))
    if not text:
        raise UserError(f"{path}: is empty; write a prompt on each line")
    return text.removesuffix("\n").split("\n")


def _decode(content: bytes, name: str) -> str:
    """Returns UTF-8 without a byte order mark and with LF at the ends of lines."""
    try:
        return content.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        raise UserError(f"{name}: is not UTF-8 text") from error


def _print_piece(index: int, piece: str) -> None:
    del index
    print(piece, end="", flush=True)


def _stream(sampler: "TextSampler", prompt: str, sampling: Sampling, options: GenerationOptions) -> None:
    print(prompt, end="", flush=True)
    (completion,) = sampler.complete([prompt], sampling, options, on_text=_print_piece)
    print(flush=True)
    print(_ENDINGS[completion.finish], file=sys.stderr)


def _run_dialogue(sampler: "TextSampler", sampling: Sampling, options: GenerationOptions) -> None:
    """Continues each line that is typed until the end of input; Ctrl-C ends the current text."""
    print("type one prompt per line; Ctrl-C ends a text, Ctrl-D ends the program", file=sys.stderr)
    while True:
        try:
            prompt = input("> ")
        except EOFError:
            print()
            return
        except UnicodeDecodeError:
            print("error: standard input: is not UTF-8 text", file=sys.stderr)
            continue
        try:
            _stream(sampler, prompt, sampling, options)
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
    """Formats the generation speed in one line."""
    rate = f", then {speed.later_tokens / speed.later_s:,.1f} tokens/s" if speed.later_tokens else ""
    return f"{speed.tokens:,} tokens; first tokens after {speed.first_s:.2f} s, compilation included{rate}"
