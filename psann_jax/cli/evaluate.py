"""Evaluates a trained run on any text: psann-jax evaluate --workdir=RUN [--data=SOURCE] [--stride=N] [--json].

Without --data it uses the whole validation text of the run, which reproduces its val_loss; if the run had
eval.max_tokens, --max_tokens with that value does. With --follow it evaluates every checkpoint while the run trains.
"""

import argparse
import functools
import json
import math
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from psann_jax.cli.flags import RunParser, load_options, positive_int, positive_number
from psann_jax.utils.files import given_path

if TYPE_CHECKING:
    from psann_jax.runs.evaluate import Evaluation


def main(argv: Sequence[str]) -> None:
    """Prints loss, perplexity, accuracy, bits per byte and number of tokens, and losses by position and source."""
    flags = _parse(argv)
    if flags.follow:
        _follow(flags)
        return
    # Imported here, so that errors in the command line are reported before JAX loads.
    from psann_jax.runs.evaluate import evaluate, text_of, validation_text
    from psann_jax.runs.restore import load_text_run

    run = load_text_run(flags.workdir, flags.checkpoint, **load_options(flags))
    print(f"{flags.workdir}: step {run.step}", file=sys.stderr)
    if flags.data is None:
        text = validation_text(run, progress=True)
    else:
        text = text_of(run, flags.data, document=flags.document, text_field=flags.text_field)
    found = evaluate(
        run, text, max_tokens=flags.max_tokens, batch_size=flags.batch_size, stride=flags.stride, progress=True
    )
    if flags.json:
        print(json.dumps({"workdir": flags.workdir, "step": run.step, "data": flags.data, **_json(found)}))
    else:
        print("\n".join([*(f"{name:<14}{value:,.6g}" for name, value in found.results.items()), *_tables(found)]))


def _follow(flags: argparse.Namespace) -> None:
    """Evaluates all checkpoints, and prints a line for each."""
    from psann_jax.runs.evaluate import Evaluator, text_of, validation_text
    from psann_jax.runs.follow import Follower
    from psann_jax.runs.restore import TextRun, load_text_run

    evaluators: list[Evaluator] = []  # one, made for the first checkpoint

    def evaluate(run: TextRun) -> dict[str, Any]:
        if not evaluators:
            if flags.data is None:
                text = validation_text(run, progress=True)
            else:
                text = text_of(run, flags.data, document=flags.document, text_field=flags.text_field)
            options = {name: getattr(flags, name) for name in ("max_tokens", "batch_size", "stride")}
            evaluators.append(Evaluator(run, text, **options))
        (evaluator,) = evaluators
        return {"text": evaluator.text.fingerprint, **_json(evaluator.evaluate(run, progress=True))}

    names = ("data", "document", "text_field", "max_tokens", "stride", "ema_params", "precision")
    follower = Follower(
        given_path(flags.workdir, "--workdir"),
        {name: getattr(flags, name) for name in names},
        lambda line: print(line, file=sys.stderr),
    )
    load = functools.partial(load_text_run, flags.workdir, **load_options(flags))
    for row in follower.run(load, evaluate, math.inf if flags.timeout is None else flags.timeout):
        print(json.dumps(row) if flags.json else _line(row), flush=True)


def _line(row: dict[str, Any]) -> str:
    """The results of a checkpoint in a line, without those that are NaN."""
    names = ("loss", "ppl", "accuracy", "bits_per_byte")
    shown = (f"{name} {row[name]:,.6g}" for name in names if row[name] is not None)
    return "  ".join((f"step {row['step']}", *shown))


def _json(found: "Evaluation") -> dict[str, Any]:
    """The results; NaN, which JSON lacks, as None."""
    parts = {f"by_{kind}": [loss._asdict() for loss in losses] for kind, losses in found.parts.items()}
    plain: dict[str, Any] = json.loads(json.dumps({**found.results, **parts}), parse_constant=lambda _: None)
    return plain


def _tables(found: "Evaluation") -> Iterator[str]:
    """The lines of a table for each kind of parts, without kinds that have one part."""
    for kind, losses in found.parts.items():
        if len(losses) > 1:
            width = max(len(kind), *(len(loss.name) for loss in losses))
            yield f"\n{kind:<{width}}  {'loss':>8}  {'stderr':>8}  {'tokens':>12}"
            for name, loss, stderr, tokens in losses:
                yield f"{name:<{width}}  {_number(loss)}  {_number(stderr)}  {tokens:>12,}"


def _number(value: float) -> str:
    return f"{'-':>8}" if math.isnan(value) else f"{value:>8.4f}"


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = RunParser(
        "evaluate",
        "Prints loss, perplexity, accuracy and bits per byte of a trained run on a text.",
        precision="run",
        divides_windows=True,
    )
    add = parser.add_argument
    add("--data", metavar="SOURCE", help="a text, named as in data.sources; default the run's own validation text")
    add(
        "--document",
        choices=("auto", "line", "paragraph", "file", "article", "heading"),
        help="what one document of a .txt file is; default the setting of the run",
    )
    add(
        "--text_field",
        metavar="NAME",
        help="field that holds the text in .jsonl, .parquet, tfds: and hf: records; default as in training",
    )
    add("--max_tokens", type=int, default=0, metavar="N", help="only the first N tokens, in whole windows; default all")
    add("--batch_size", type=positive_int, metavar="N", help="windows per batch; default as in training")
    add(
        "--stride",
        type=positive_int,
        metavar="N",
        help="windows start N tokens apart and predict their last N, so that each sees at least max_length - N tokens "
        "before it, if its document has them; default max_length",
    )
    add("--json", action="store_true", help="print one JSON object instead of lines, with --follow one per checkpoint")
    add(
        "--follow",
        action="store_true",
        help="evaluate every checkpoint, also those to come, until the run is complete; results go to "
        "evaluations.jsonl in the workdir, too",
    )
    add(
        "--timeout",
        type=positive_number,
        metavar="SECONDS",
        help="with --follow: end after so many seconds without a new checkpoint; default: when the run is complete",
    )
    flags = parser.parse_strictly(argv)
    for name in ("document", "text_field"):
        if flags.data is None and getattr(flags, name) is not None:
            parser.error(f"--{name}: has no effect without --data")
    if flags.timeout is not None and not flags.follow:
        parser.error("--timeout: has no effect without --follow")
    if flags.follow and flags.checkpoint != "last":
        parser.error("--checkpoint: has no effect with --follow, which evaluates all checkpoints")
    return flags
