"""Evaluates a trained run on any text: psann-jax evaluate --workdir=RUN [--data=SOURCE] [--json].

Without --data it uses the run's own validation text and reproduces its val_loss.
"""

import argparse
import json
import sys
from collections.abc import Sequence

from psann_jax.cli.flags import RunParser, load_options


def main(argv: Sequence[str]) -> None:
    """Prints loss, perplexity, accuracy, bits per byte and the number of predicted tokens."""
    flags = _parse(argv)
    # Imported late, so that an error in the command line shows at once.
    from psann_jax.runs.evaluate import evaluate, text_of, validation_text
    from psann_jax.runs.restore import load_text_run

    run = load_text_run(flags.workdir, flags.checkpoint, **load_options(flags))
    print(f"{flags.workdir}: step {run.step}", file=sys.stderr)
    if flags.data is None:
        text = validation_text(run, progress=True)
    else:
        text = text_of(run, flags.data, document=flags.document, text_field=flags.text_field)
    result = evaluate(run, text, max_tokens=flags.max_tokens, batch_size=flags.batch_size, progress=True)
    if flags.json:
        print(json.dumps({"workdir": flags.workdir, "step": run.step, "data": flags.data, **result}))
    else:
        print("\n".join(f"{name:<14}{value:,.6g}" for name, value in result.items()))


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = RunParser(
        "evaluate", "Prints loss, perplexity, accuracy and bits per byte of a trained run on a text.", precision="run"
    )
    add = parser.add_argument
    add("--data", metavar="SOURCE", help="a text, named as in data.sources; default the run's own validation text")
    add(
        "--document",
        choices=("auto", "line", "paragraph", "file"),
        help="what one document of a .txt file is; default the setting of the run",
    )
    add(
        "--text_field",
        metavar="NAME",
        help="field that holds the text in .jsonl, .parquet, tfds: and hf: records; default as in training",
    )
    add("--max_tokens", type=int, default=0, metavar="N", help="only the first N tokens, in whole windows; default all")
    add("--batch_size", type=int, metavar="N", help="windows per batch; default as in training")
    add("--json", action="store_true", help="print one JSON object instead of lines")
    flags = parser.parse_strictly(argv)
    for name in ("document", "text_field"):
        if flags.data is None and getattr(flags, name) is not None:
            parser.error(f"--{name}: has no effect without --data")
    return flags
