"""Loss of a trained run on any text: psann-jax evaluate --workdir=RUN [--data=SOURCE] [--json].

Without --data it is the run's own validation text, whose val_loss comes out again.
"""

import argparse
import json
import sys
from collections.abc import Sequence

from psann_jax.cli.run_flags import RunParser, load_options, run_command


def main(argv: Sequence[str]) -> None:
    """Prints loss, ppl, accuracy, bits per byte and the number of predicted tokens."""
    flags = _parse(argv)
    # Imported late, so that a mistake on the command line is told at once.
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
        "psann_jax.cli.evaluate",
        "Loss, perplexity, accuracy and bits per byte of a trained run on a text.",
        precision="run",
    )
    add = parser.add_argument
    add("--data", metavar="SOURCE", help="a text, named as in data.sources; default the run's own validation text")
    add("--document", choices=("line", "file"), help="what one document of a .txt file is; default as in training")
    add("--text_field", metavar="NAME", help="of .jsonl, .parquet, tfds: and hf: records; default as in training")
    add("--max_tokens", type=int, default=0, metavar="N", help="only the first N tokens, in whole windows; default all")
    add("--batch_size", type=int, metavar="N", help="windows at once; default as in training")
    add("--json", action="store_true", help="one JSON object instead of lines")
    flags = parser.parse_strictly(argv)
    for name in ("document", "text_field"):
        if flags.data is None and getattr(flags, name) is not None:
            parser.error(f"--{name}: has no effect without --data")
    return flags


if __name__ == "__main__":
    run_command(main)
