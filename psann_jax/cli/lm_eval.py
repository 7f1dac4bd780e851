"""Scores a trained run on standard tasks: psann-jax lm_eval --workdir=RUN --tasks=lambada_openai,hellaswag --limit=256.

Your own tasks are files in lm_eval's format, in the folder that --include_path names.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from psann_jax.cli.flags import RunParser, load_options, names, positive_int, writable_file
from psann_jax.utils.errors import UserError
from psann_jax.utils.extras import require_extra
from psann_jax.utils.files import write_json


def main(argv: Sequence[str]) -> None:
    """Prints lm_eval's table; with --json also writes its results to a file."""
    flags = _parse(argv)
    require_extra("lm_eval", "lm_eval")
    # Imported here, so that errors in the command line are reported before JAX loads.
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager
    from lm_eval.utils import make_table

    from psann_jax.runs.lm_eval_model import LmEvalModel
    from psann_jax.runs.restore import load_text_run

    run = load_text_run(flags.workdir, flags.checkpoint, **load_options(flags))
    manager = TaskManager(include_path=None if flags.include_path is None else str(flags.include_path))
    missing = [name for name in flags.tasks if not manager.match_tasks([name])]
    if missing:
        raise UserError(f"--tasks: lm_eval has no task {', '.join(missing)}; `lm_eval ls tasks` lists them")
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
    except OSError as error:  # a task's data: an unreachable hub, a missing file
        reason = str(error).splitlines()[0]
        raise UserError(f"--tasks: the data of {', '.join(flags.tasks)} cannot be loaded: {reason}") from error
    print(make_table(results))
    if flags.json is not None:
        content = {name: results[name] for name in ("results", "versions", "n-shot", "n-samples")}
        settings = {"limit": flags.limit, "tasks": flags.tasks, "lm_eval": version("lm_eval")}
        content = {"workdir": flags.workdir, "step": run.step, **settings, **content}
        write_json(flags.json, json.loads(json.dumps(content, default=str)))


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = RunParser("lm_eval", "Scores a trained run on tasks of lm_eval.", precision="auto")
    add = parser.add_argument
    add("--tasks", required=True, type=names, metavar="NAMES", help="for example lambada_openai,hellaswag")
    add("--limit", type=positive_int, metavar="N", help="only the first N examples of each task; default all")
    add("--num_fewshot", type=int, metavar="N", help="solved examples in the prompt; default the task's own number")
    add("--include_path", type=Path, metavar="DIR", help="a folder with your own tasks")
    add("--batch_size", type=positive_int, default=16, metavar="N", help="sequences per batch; default 16")
    add("--use_cache", type=Path, metavar="PREFIX", help="store answers in files with this prefix and reuse them")
    add("--json", type=writable_file, metavar="FILE", help="write the results as JSON")
    return parser.parse_strictly(argv)
