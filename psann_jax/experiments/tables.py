"""The sections of a sweep's report, as texts and tables."""

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from psann_jax.config.families import family
from psann_jax.config.io import flatten, to_dict
from psann_jax.experiments.cases import Case
from psann_jax.experiments.comparisons import Comparison
from psann_jax.experiments.ladder_tables import ladder_parts
from psann_jax.experiments.obstacles import have_equal_tokens, same_validation
from psann_jax.experiments.outcome import Outcome, settings_text
from psann_jax.experiments.part_tables import loss_parts
from psann_jax.experiments.statistics import ALPHA, MIN_SEEDS, Difference, mean_and_deviation


@dataclass(frozen=True)
class Section:
    """A part of the report.

    Attributes:
      title: its heading.
      text: a paragraph, possibly empty.
      table: rows of cells, the first one the head; empty if there is no table.
    """

    title: str
    text: str
    table: list[list[str]]

    def numeric_columns(self) -> list[bool]:
        """Returns for each column whether it holds numbers, which are aligned to the right."""
        _, *rows = self.table
        return [all(cell[:1] in "+-0123456789" for cell in column) for column in zip(*rows, strict=True)]


EQUAL = {
    "tokens": "equal training tokens",
    "flops": "equal training FLOPs",
    "parameters": "equal parameters and training tokens",
    "seconds": "equal training time on this device",
}
DIFFERENCE_COLUMNS = (
    "contender",
    "reference",
    "seeds",
    "difference",
    "95 % interval",
    "p (Holm)",
    "verdict",
    "detectable",
)
_MAIN_SETTINGS = ("data.max_length", "data.tokenizer.vocab_size", "train.batch_tokens", "train.grad_accum",
                  "train.optimizer", "train.lr", "train.schedule", "train.warmup_steps", "train.weight_decay",
                  "train.grad_clip", "train.precision", "model.init")  # fmt: skip


def sections(
    outcomes: Sequence[Outcome], n_cases: int, reference: str, comparisons: Sequence[Comparison]
) -> list[Section]:
    """Returns the sections of the report.

    Args:
      outcomes: the cases that are trained or have failed.
      n_cases: the number of all cases.
      reference: the contender that the others are compared with.
      comparisons: all of the report.
    """
    finished = [outcome for outcome in outcomes if outcome.summary is not None]
    failed = [outcome for outcome in outcomes if outcome.error is not None]
    parts = [_runs(finished, len(failed), n_cases)]
    for budget in dict.fromkeys(o.case.budget for o in finished):
        group = [o for o in outcomes if o.case.budget == budget and not o.failed]
        parts += [_leaderboard(budget, group, reference), _differences(budget, comparisons, reference)]
    if finished:
        runs = list({o.folder: o for o in reversed(finished)}.values())[::-1]  # cases may share a run
        parts += [Section(*part) for part in ladder_parts(finished, comparisons)]
        parts += [Section(*part) for part in loss_parts(finished, reference)]
        parts += [_common_step(finished), _best_and_last(runs), _throughput(runs)]
        parts += [_lm_eval_scores(finished)] if any(o.lm_eval for o in finished) else []
        parts += [_contenders(finished), _settings(finished, reference)]
        parts += [_different_code(runs)] if len({_code(o) for o in finished}) > 1 else []
    if failed:
        rows = [[o.case.name, str(o.error)] for o in failed]
        text = "What these runs lack is missing from the tables above."
        parts.append(Section("Failed", text, [["run", "error"], *rows]))
    return parts


# --- comparisons ----------------------------------------------------------------------------------------


def _runs(finished: Sequence[Outcome], n_failed: int, n_cases: int) -> Section:
    text = f"{len(finished)} of {n_cases} finished, {n_failed} failed."
    if not finished:
        return Section("Runs", text, [])
    config, seeds = finished[0].case.config, sorted({o.case.seed for o in finished})
    target = family(config.model.base).get("task").TARGET
    is_same = same_validation(finished)
    over = "over the same validation set" if is_same else "but not all over the same validation text and tokens"
    text += (
        f" Data: {config.data.summary()}; {'seed' if len(seeds) == 1 else 'seeds'} {', '.join(map(str, seeds))}. "
        f"Losses are mean cross entropies in nats per {target}{' ' if is_same else ', '}{over}."
    )
    if len(seeds) == 1:
        text += " One seed cannot show which contender is better: another seed could reverse small differences."
    if n_shared := sum(o.shares for o in finished):
        text += (
            f" {n_shared} of the {len(finished)} trained at the same time as others, on shared cores or a shared GPU: "
            "their tokens/s and seconds say nothing about the speed of a contender."
        )
    return Section("Runs", text, [])


def _leaderboard(budget: str, outcomes: Sequence[Outcome], reference: str) -> Section:
    """The means of the runs under one budget that are trained or have diverged."""
    rows = []
    # A trained one if there is one, as its tokens are known.
    trained_last = sorted(outcomes, key=lambda o: o.summary is not None)
    references = {o.case.settings: o for o in trained_last if o.case.contender == reference}
    solves = any(o.summary is not None and o.metrics()["val_solved"] is not None for o in outcomes)
    for group in _groups(outcomes, lambda case: case.group):
        mean, deviation = mean_and_deviation([o.val_loss for o in group])
        case = group[0].case
        is_equal = all(have_equal_tokens(o, references.get(case.settings, o)) for o in group)
        title = case.label if is_equal else f"{case.label} (unequal tokens)"
        row = [title, str(len(group)), f"{mean:.4f}", or_dash(deviation), _perplexity(mean)]
        rows.append((mean, [*row, *_measured([o.metrics() for o in group if o.summary is not None], solves)]))
    head = ["contender", "seeds", "val loss", "deviation", "ppl", *["solved"] * solves, "accuracy", "M tokens", "FLOPs"]
    text = "After the last update: means over the seeds, and the sample standard deviation of the loss."
    if any(math.isnan(mean) for mean, _ in rows):
        text += " The loss is nan if a run diverged; the other columns are then those of the runs that did not."
    if any(row[0].endswith("(unequal tokens)") for _, row in rows):
        text += " Contenders with unequal tokens have training lengths or padding of their own, and no verdict."
    table = [[*head, "parameters", "tokens/s", "peak MB"], *_sorted(rows)]
    return Section(f"Leaderboard at {EQUAL[budget]}", text, table)


def _measured(metrics: Sequence[Mapping[str, Any]], solves: bool) -> list[str]:
    """The cells of the leaderboard after the perplexity, from the metrics of the trained runs of a contender."""
    if not metrics:
        return ["-"] * (6 + solves)
    names = (*["val_solved"] * solves, "val_accuracy", "peak_memory_mb")
    *scores, memory = (statistics.fmean(m[name] for m in metrics) for name in names)
    rates = [m["train_tokens_per_s"] for m in metrics if m["train_tokens_per_s"]]  # 0: not known
    rate = f"{statistics.fmean(rates):,.0f}" if rates else "-"
    first = metrics[0]
    length = [f"{first['train_tokens'] / 1e6:.2f}", f"{first['train_flops']:.3g}", f"{first['param_count']:,}"]
    return [*(f"{score:.4f}" for score in scores), *length, rate, f"{memory:,.0f}"]


def _differences(budget: str, comparisons: Sequence[Comparison], reference: str) -> Section:
    """The comparisons with the reference under one budget."""
    shown = [c for c in comparisons if c.budget == budget and not c.is_slope]
    rows = [list(DIFFERENCE_COLUMNS), *map(difference_row, shown)]
    title = f"Differences to the reference at {EQUAL[budget]}"
    if not shown:
        return Section(title, f"There is no finished pair of {reference} and another contender.", [])
    return Section(title, _how_to_read(shown), rows)


def difference_row(comparison: Comparison) -> list[str]:
    """Returns the cells of `DIFFERENCE_COLUMNS` for a comparison."""
    d = comparison.difference
    p = "-" if math.isnan(d.adjusted_p) else f"{d.adjusted_p:.3f}" if d.adjusted_p >= 1e-3 else "< 0.001"
    numbers = [_seeds(d), f"{d.mean:+.4f}", _interval(d), p]
    return [*comparison.labels, *numbers, d.verdict, or_dash(d.detectable)]


_TESTS = {True: "Student's for differences paired by seed", False: "Welch's where too few seeds are shared"}


def _how_to_read(shown: Sequence[Comparison]) -> str:
    text = "The last validation loss minus the reference's."
    tested = [c for c in shown if c.difference.tested]
    if tested:
        tests = " and ".join(_TESTS[paired] for paired in sorted({bool(c.difference.pairs) for c in tested})[::-1])
        text += (
            f" The interval is the 95 % t interval of one difference alone ({tests}); it assumes normal "
            "distributions over the seeds. The p value is adjusted by Holm's procedure for all "
            f"{tested[0].difference.tested} comparisons of this report. Better and worse mean p <= {ALPHA}: at most "
            f"{100 * ALPHA:.0f} % of reports in which nothing differs have such a verdict. The last column is the "
            "smallest true difference that four of five such experiments would find."
        )
        text += _text_noise(tested)
    if len(tested) < len(shown):
        text += f" With fewer than {MIN_SEEDS} seeds there is no verdict; the differences are given by seed."
    return text


def _text_noise(tested: Sequence[Comparison]) -> str:
    """Says whether the noise of the evaluation text is part of the intervals."""
    with_interval = [c for c in tested if not math.isnan(c.difference.low)]
    without = [c.labels[0] for c in with_interval if not c.text_included]
    if not with_interval:
        return ""
    if not without:
        return " The noise of the evaluation text is included, by a bootstrap over its windows."
    which = "any interval" if len(without) == len(with_interval) else f"the interval of {', '.join(without)}"
    return (
        f" The noise of the evaluation text is not part of {which}: its runs lack the losses of at least 8 blocks of "
        "common windows, so the result holds for this text only."
    )


def _seeds(d: Difference) -> str:
    return str(d.seeds[0]) if d.pairs else f"{d.seeds[0]} and {d.seeds[1]}"


def _interval(d: Difference) -> str:
    if not math.isnan(d.low):
        return f"{d.low:+.4f} to {d.high:+.4f}"
    return f"by seed {', '.join(f'{x:+.4f}' for x in d.pairs)}" if 1 < len(d.pairs) < MIN_SEEDS else "-"


def _common_step(finished: Sequence[Outcome]) -> Section:
    step = max(set.intersection(*(set(o.losses) for o in finished)), default=0)
    title = "Loss at the last common step"
    if step == 0:
        return Section(title, "The runs have evaluated no step in common after the first update.", [])
    rows = []
    for group in _groups(finished, _long_label):
        mean, deviation = mean_and_deviation([o.losses[step] for o in group])
        rows.append((mean, [_long_label(group[0].case), str(len(group)), f"{mean:.4f}", or_dash(deviation)]))
    text = f"Step {step:,} is the last one that all runs have evaluated: means over the seeds."
    return Section(title, text, [["contender", "seeds", f"val loss at {step:,}", "deviation"], *_sorted(rows)])


def _best_and_last(runs: Sequence[Outcome]) -> Section:
    rows = []
    for run in runs:
        (best_step, best), (last_step, last) = run.best, list(run.losses.items())[-1]
        numbers = [f"{best:.4f}", _perplexity(best), f"{best_step:,}", f"{last:.4f}", f"{last_step:,}"]
        rows.append((best, [run.case.name, *numbers]))
    head = ["run", "best val loss", "best ppl", "best step", "last val loss", "last step"]
    return Section("Best and last losses", "Sorted by the best loss after the first update.", [head, *_sorted(rows)])


def _lm_eval_scores(finished: Sequence[Outcome]) -> Section:
    scores: dict[tuple[str, str, str], list[float]] = {}
    for outcome in finished:
        for task, found in (outcome.lm_eval or {"results": {}})["results"].items():
            for key, value in found.items():
                name = key.split(",")[0]
                if isinstance(value, float | int) and not name.endswith(("_stderr", "sample_len")):
                    scores.setdefault((task, name, _long_label(outcome.case)), []).append(float(value))
    rows = [["task", "score", "contender", "seeds", "mean", "deviation"]]
    for names, values in sorted(scores.items()):
        mean, deviation = mean_and_deviation(values)
        rows.append([*names, str(len(values)), f"{mean:.4f}", or_dash(deviation)])
    limits = sorted({o.lm_eval["limit"] for o in finished if o.lm_eval})
    text = f"Scores of lm_eval on the first {' or '.join(map(str, limits))} examples of each task, over the seeds."
    return Section("Standard tasks", text, rows)


# --- the runs themselves --------------------------------------------------------------------------------


def _throughput(runs: Sequence[Outcome]) -> Section:
    rows = [["run", "steps/s", "s/step", "tokens/s", "peak MB", "parameters"]]
    for run in runs:
        summary, tokens = run.summary or {}, run.update_tokens
        rate = summary["tokens_per_s"]
        times = [f"{rate / tokens:.3f}", f"{tokens / rate:.3g}", f"{rate:,.0f}"] if rate else ["-"] * 3  # 0: not known
        rows.append([run.case.name, *times, f"{summary['peak_memory_mb']:,.0f}", f"{summary['n_params']:,}"])
    return Section("Throughput and memory", "Without compilation, evaluation and checkpoints.", rows)


def _contenders(finished: Sequence[Outcome]) -> Section:
    differences = {_long_label(o.case): settings_text(o.case.differences) or "none" for o in finished}
    text = "Settings in which a contender differs from the reference, of those that both have."
    return Section("Contenders", text, [["contender", "differences"], *map(list, differences.items())])


def _settings(finished: Sequence[Outcome], reference: str) -> Section:
    run = next((o for o in finished if o.case.contender == reference), finished[0])
    flat = dict(flatten(to_dict(run.case.config)))
    rows = [[key, str(flat[key])] for key in _MAIN_SETTINGS if key in flat]
    text = "The main ones; config_used.json has all settings of all runs."
    return Section(f"Settings of {run.case.name}", text, [["setting", "value"], *rows])


def _different_code(runs: Sequence[Outcome]) -> Section:
    text = "These runs were not all trained by the same code, which may be the cause of differences."
    return Section("Different code", text, [["run", "trained by"], *([o.case.name, _code(o)] for o in runs)])


def _code(outcome: Outcome) -> str:
    names = ("psann_jax", "code", "jax", "flax", "optax")
    return ", then ".join(" ".join(f"{n} {code[n]}" for n in names) for code in outcome.codes) or "not recorded"


# --- cells ----------------------------------------------------------------------------------------------


def _groups(outcomes: Iterable[Outcome], key: Callable[[Case], object]) -> list[list[Outcome]]:
    groups: dict[object, list[Outcome]] = {}
    for outcome in outcomes:
        groups.setdefault(key(outcome.case), []).append(outcome)
    return list(groups.values())


def _long_label(case: Case) -> str:
    return case.label if case.budget == "tokens" else f"{case.label} ({case.budget})"


def _sorted(rows: list[tuple[float, list[str]]]) -> list[list[str]]:
    """Sorts rows by a loss; those without a finite one come last."""
    return [row for _, row in sorted(rows, key=lambda pair: (math.isnan(pair[0]), pair[0]))]


def or_dash(deviation: float) -> str:
    """Returns a deviation as a cell; a dash if it is not known."""
    return "-" if math.isnan(deviation) else f"{deviation:.4f}"


def _perplexity(loss: float) -> str:
    perplexity = math.exp(min(loss, 700))
    return f"{perplexity:.2f}" if perplexity < 1e5 else f"{perplexity:.3g}"
