"""Scores on standard tasks: psann-jax lm_eval --workdir=RUN --tasks=lambada_openai,hellaswag --limit=256.

Tasks of your own are files in lm_eval's format, in the folder that --include_path names.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from psann_jax.cli.run_flags import RunParser, load_options, run_command
from psann_jax.utils.errors import UserError


def main(argv: Sequence[str]) -> None:
    """Prints lm_eval's table; with --json writes its results to a file."""
    flags = _parse(argv)
    if find_spec("lm_eval") is None:
        raise UserError("lm_eval: is not installed; pip install 'psann_jax[lm_eval]'")
    if flags.json is not None and not flags.json.parent.is_dir():
        raise UserError(f"{flags.json}: its folder does not exist; name a file in one that does")
    # Imported late, so that a mistake on the command line is told at once.
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager
    from lm_eval.utils import make_table

    from psann_jax.runs.lm_eval_model import LmEvalModel
    from psann_jax.runs.restore import load_text_run
    from psann_jax.utils.files import write_json

    run = load_text_run(flags.workdir, flags.checkpoint, **load_options(flags))
    manager = TaskManager(include_path=None if flags.include_path is None else str(flags.include_path))
    missing = [name for name in flags.tasks if not manager.match_tasks([name])]
    if missing:
        raise UserError(f"--tasks: lm_eval knows no {', '.join(missing)}; `lm_eval ls tasks` lists them")
    try:
        results: Any = simple_evaluate(
            LmEvalModel(run, batch_size=flags.batch_size, progress=sys.stderr.isatty()),
            tasks=flags.tasks,
            num_fewshot=flags.num_fewshot,
            limit=flags.limit,
            use_cache=None if flags.use_cache is None else str(flags.use_cache),
            task_manager=manager,
            log_samples=False,
        )
    except OSError as error:  # a task's data: a hub that is not reached, a file that is not there
        reason = str(error).splitlines()[0]
        raise UserError(f"--tasks: the data of {', '.join(flags.tasks)} cannot be had: {reason}") from error
    print(make_table(results))
    if flags.json is not None:
        content = {name: results[name] for name in ("results", "versions", "n-shot", "n-samples")}
        settings = {"limit": flags.limit, "tasks": flags.tasks, "lm_eval": version("lm_eval")}
        content = {"workdir": flags.workdir, "step": run.step, **settings, **content}
        write_json(flags.json, json.loads(json.dumps(content, default=str)))


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = RunParser("psann_jax.cli.lm_eval", "Scores of a trained run on tasks of lm_eval.", precision="auto")
    add = parser.add_argument
    add("--tasks", required=True, type=_names, metavar="NAMES", help="as in lambada_openai,hellaswag")
    add("--limit", type=_positive, metavar="N", help="only the first N examples of a task; default all")
    add("--num_fewshot", type=int, metavar="N", help="solved examples before each; default the task's own")
    add("--include_path", type=Path, metavar="DIR", help="tasks of your own")
    add("--batch_size", type=_positive, default=16, metavar="N", help="sequences at once; default 16")
    add("--use_cache", type=Path, metavar="FILE", help="answers are kept there and used again; begins with its name")
    add("--json", type=Path, metavar="FILE", help="results as JSON")
    return parser.parse_strictly(argv)


def _names(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise argparse.ArgumentTypeError("is empty, must be names as in lambada_openai,hellaswag")
    return names


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"is {text!r}, must be a whole number above 0")
    return int(text)


if __name__ == "__main__":
    run_command(main)
