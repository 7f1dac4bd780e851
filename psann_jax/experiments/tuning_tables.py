"""What a sweep's report shows of its tuning stage: two sections, and an entry in summary.json."""

import math
from typing import Any

from psann_jax.experiments.cases import Case
from psann_jax.experiments.outcome import settings_text
from psann_jax.experiments.statistics import mean_and_deviation
from psann_jax.experiments.sweeps import RUNG
from psann_jax.experiments.tables import Section, or_dash
from psann_jax.experiments.trials import Candidate, Choice, Stage, choose, noises


def tuning_sections(stage: Stage) -> list[Section]:
    """Returns the sections "Tuning" and "Trials"."""
    rows = [["contender", "chosen", "held-out loss", "within noise of it", "on an edge"]]
    for choice in stage.choices().values():
        tied = "; ".join(settings_text(c.settings) for c in choice.tied) or "-"
        edge = "; ".join(f"{name}: {end} value" for name, end in choice.edges) or "-"
        rows.append([choice.label, settings_text(choice.settings), _loss(choice.candidates[0].loss), tied, edge])
    table = rows if len(rows) > 1 else []
    return [Section("Tuning", _explanation(stage), table), _trials(stage)]


def _explanation(stage: Stage) -> str:
    tuning = stage.tuning
    text = (
        f"{_trials_done(stage)}. The lowest loss after the last update is chosen. They were trained and validated on "
        f"the training data only, of which {100 * tuning.valid_fraction:.3g} % were held out. No trial read the "
        f"validation data of the comparison ({', '.join(stage.valid_names)}). A trial that diverged counts as "
        "infinitely bad."
    )
    if tuning.extend:
        of_rung = " of the rung" if any(RUNG in dict(case.settings) for case in stage.cases) else ""
        text += (
            f" While a best value was on an edge, the grid of all contenders{of_rung} was extended there, by up to "
            f"{tuning.extend} values."
        )
    if not stage.complete:
        return f"{text} {len(stage.outcomes)} of {len(stage.cases)} trials have ended, so nothing is chosen yet."
    choices = stage.choices().values()
    if any(choice.edges for choice in choices):
        text += " Where the best value is on an edge of those tried, a value beyond it may be better."
    return f"{text} {_noise(list(choices))}"


def _trials_done(stage: Stage) -> str:
    """Number, seeds and length of the trials of a contender, of each rung if there are rungs."""
    seeds = f"{'seed' if len(stage.tuning.seeds) == 1 else 'seeds'} {', '.join(map(str, stage.tuning.seeds))}"
    rungs: dict[str, list[Case]] = {}
    for case in stage.cases:
        rungs.setdefault(dict(case.settings).get(RUNG, ""), []).append(case)
    texts = []
    for rung, cases in rungs.items():
        n_trials = len(cases) // len({case.contender for case in cases})
        lengths = {(case.config.train.steps, case.config.train.batch_tokens): None for case in cases}
        length = " or ".join(f"{steps:,} updates of {tokens:,} tokens" for steps, tokens in lengths)
        text = f"{n_trials} trials of each contender, {seeds}, {length}"
        texts.append(f"Rung {rung}: {text}" if rung else text)
    return ". ".join(texts)


def _noise(choices: list[Choice]) -> str:
    best = [(choice.candidates[0], other) for choice in choices for other in choice.candidates[1:]]
    if not any(noises(a, b) for a, b in best):
        return "How much the losses vary with seed and held-out text is not known, so small differences decide nothing."
    one_seed = len(best[0][0].outcomes) == 1
    known = "the choice of held-out text" if one_seed else "seeds and held-out text, as far as known"
    text = f"Settings are within noise if the 95 % interval of their difference, over {known}, contains zero."
    return text + (" One seed does not show how much the losses vary with it, so even more may be." if one_seed else "")


def _trials(stage: Stage) -> Section:
    rows = [["contender", "settings", "seeds", "held-out loss", "deviation", "remark"]]
    chosen = {name: choice.settings for name, choice in stage.choices().items()}
    tied = {name: [c.settings for c in choice.tied] for name, choice in stage.choices().items()}
    for name, choice in choose(stage.outcomes).items():
        for candidate in choice.candidates:
            _, deviation = mean_and_deviation([o.val_loss for o in candidate.outcomes])
            remark = _remark(candidate)
            if candidate.settings == chosen.get(name):
                remark = remark or "chosen"
            elif candidate.settings in tied.get(name, []):
                remark = "within noise"
            row = [name, settings_text(candidate.settings), str(len(candidate.outcomes)), _loss(candidate.loss)]
            rows.append([*row, or_dash(deviation), remark or "-"])
    return Section("Trials", "Of each contender, the best one first.", rows if len(rows) > 1 else [])


def _remark(candidate: Candidate) -> str:
    errors = [str(o.error) for o in candidate.outcomes if o.failed]
    return f"failed: {errors[0]}" if errors else "diverged" if math.isinf(candidate.loss) else ""


def _loss(loss: float) -> str:
    return f"{loss:.4f}"


def tuning_metrics(stage: Stage) -> dict[str, Any]:
    """Returns the entry "tuning" of summary.json: how trials were made, what they chose, and all of them."""
    choices = {
        name: {
            "settings": dict(choice.settings),
            "held_out_loss": choice.candidates[0].loss,
            "edges": dict(choice.edges),
            "within_noise": [dict(c.settings) for c in choice.tied],
        }
        for name, choice in stage.choices().items()
    }
    facts = {"seeds": list(stage.tuning.seeds), "valid_fraction": stage.tuning.valid_fraction}
    return {**facts, "complete": stage.complete, "chosen": choices, "trials": [o.metrics() for o in stage.outcomes]}
