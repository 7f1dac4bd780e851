"""The tuning stage of a sweep: which settings are tried for each contender. Imports no JAX, as config files use it."""

import itertools
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from psann_jax.config import ConfigError, require

Settings = tuple[tuple[str, Any], ...]  # dotted names and values
Grid = dict[str, tuple[Any, ...]]  # dotted names and the values to combine
LOW, HIGH = "lowest", "highest"  # ends of the values of a setting


@dataclass(frozen=True)
class LogRange:
    """Values of a random search between two positive numbers, uniform in the logarithm."""

    low: float
    high: float

    def at(self, fraction: float) -> float:
        """Returns the value at a fraction of the range, rounded to three digits, which folder names show."""
        return _rounded(self.low * (self.high / self.low) ** fraction)


@dataclass(frozen=True)
class Tuning:
    """Chooses settings for each contender, on a part of the training data, before the contenders are compared.

    All contenders get equally many trials, each with as many updates as the compared runs, in equal training tokens. A
    trial never reads the fixed validation data: it is validated on documents (or puzzles) held out from the training
    data. The setting with the lowest mean loss over the seeds after the last update is chosen.

    Attributes:
      values: setting -> values to try, all combinations of them; a `LogRange` only with `random_trials`.
      own: contender -> what is tried for it instead of `values`.
      random_trials: number of combinations to draw at random (Bergstra and Bengio, 2012); 0: the whole grid. A larger
        number keeps the earlier trials.
      search_seed: of the drawn combinations.
      seeds: seeds of the trials, none of them a seed of the compared runs.
      valid_fraction: of the training documents or puzzles, to validate the trials on.
      extend: how many values may be added at either end of a setting, for all contenders, while the best value of one
        lies there and all of them allow the next. Added values continue the ratio of the last two; settings with other
        than positive floats are not extended.
    """

    values: Mapping[str, Sequence[Any] | LogRange] = field(default_factory=dict)
    own: Mapping[str, Mapping[str, Sequence[Any] | LogRange]] = field(default_factory=dict)
    random_trials: int = 0
    search_seed: int = 0
    seeds: Sequence[int] = (0,)
    valid_fraction: float = 0.04
    extend: int = 0

    def names(self, contender: str) -> set[str]:
        """Returns the settings that are tuned for a contender."""
        return set(self.own.get(contender, self.values))

    def check(self, contenders: Mapping[str, Settings], seeds: Sequence[int]) -> None:
        """Checks that the trials can be drawn and are equally many for all contenders.

        Args:
          contenders: name -> own settings.
          seeds: of the compared runs.

        Raises:
          ConfigError: a value cannot be used; its name begins with "tuning".
        """
        self._check_types()
        for name in self.own:
            require(name in contenders, f"tuning.own.{name}", f"is no contender, choose from {', '.join(contenders)}")
        require(0 < self.valid_fraction < 1, "tuning.valid_fraction", f"is {self.valid_fraction}, must be in (0, 1)")
        require(bool(self.seeds), "tuning.seeds", "is empty")
        both = sorted(set(self.seeds) & set(seeds))
        require(not both, "tuning.seeds", f"and the seeds of the compared runs have {both} in common; choose others")
        for name in ("random_trials", "extend"):
            require(getattr(self, name) >= 0, f"tuning.{name}", f"is {getattr(self, name)}, must be at least 0")
        for name, own in contenders.items():
            self._check_values(name, dict(own))
        require(self.random_trials > 0 or self.search_seed == 0, "tuning.search_seed", "has no effect on a grid")
        require(not (self.random_trials and self.extend), "tuning.extend", "has no effect on a random search")
        sizes = {name: len(self.combinations(name, self.grid(name))) for name in contenders}
        shown = ", ".join(f"{name} {size}" for name, size in sizes.items())
        require(len(set(sizes.values())) == 1, "tuning.own", f"gives the contenders unequal numbers of trials: {shown}")
        shapes = {tuple((key, len(values)) for key, values in self.grid(name).items()) for name in contenders}
        require(not self.extend or len(shapes) == 1, "tuning.extend", "needs the same settings for all contenders")

    def _check_types(self) -> None:
        require(isinstance(self.own, Mapping), "tuning.own", f"is {self.own!r}, must be a dict")
        for name, tried in (("values", self.values), *((f"own.{name}", tried) for name, tried in self.own.items())):
            require(isinstance(tried, Mapping), f"tuning.{name}", f"is {tried!r}, must be a dict of settings")
        for name in ("random_trials", "search_seed", "extend"):
            value = getattr(self, name)
            require(isinstance(value, int), f"tuning.{name}", f"is {value!r}, must be a whole number")
        fraction = self.valid_fraction
        require(isinstance(fraction, int | float), "tuning.valid_fraction", f"is {fraction!r}, must be a number")
        require_seeds(self.seeds, "tuning.seeds")

    def _check_values(self, contender: str, own: Mapping[str, Any]) -> None:
        tried = self._tried(contender)
        require(bool(tried), "tuning.values", f"is empty for {contender}")
        for name, values in tried.items():
            where = f"tuning.values.{name}"
            require(name not in own, where, f"is also set by contender {contender}")
            require(name not in ("seed", "model.base"), where, "cannot be tuned")
            _check_comparable(name, where)
            if isinstance(values, LogRange):
                require(self.random_trials > 0, where, "is a range, which needs tuning.random_trials")
                are_numbers = all(isinstance(end, int | float) for end in (values.low, values.high))
                require(are_numbers and 0 < values.low < values.high, where, f"is {values}, needs 0 < low < high")
            else:
                is_list = isinstance(values, Sequence) and not isinstance(values, str)
                require(is_list and len(values) > 0, where, f"is {values!r}, must be a list of values")
                # Equal numbers of different types, such as 1 and 1.0, would be one trial.
                is_repeated = any(a == b for a, b in itertools.combinations(values, 2))
                require(not is_repeated, where, f"is {tuple(values)}, which has a value twice")

    def _tried(self, contender: str) -> dict[str, Any]:
        return {name: as_tuples(values) for name, values in self.own.get(contender, self.values).items()}

    # --- combinations ---------------------------------------------------------------------------------------

    def grid(self, contender: str) -> Grid:
        """Returns the values to combine for a contender; of a range, its two ends."""
        tried = self._tried(contender).items()
        return {k: (v.low, v.high) if isinstance(v, LogRange) else tuple(v) for k, v in tried}

    def combinations(self, contender: str, grid: Grid) -> list[Settings]:
        """Returns the settings of a contender's trials.

        Args:
          contender: its name.
          grid: from `grid` or `extended`; a random search ignores it.
        """
        if not self.random_trials:
            return [tuple(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
        tried = self._tried(contender)
        # Contenders with equal ranges get equal draws.
        draw = random.Random(f"tuning {self.search_seed}").random
        drawn: dict[Settings, None] = {}
        for _ in range(1000 * self.random_trials):
            drawn[tuple((name, _pick(values, draw())) for name, values in tried.items())] = None
            if len(drawn) == self.random_trials:
                return list(drawn)
        raise ConfigError(f"tuning.random_trials: is {self.random_trials}, but {contender} has too few combinations")

    def extended(self, grids: Mapping[str, Grid], edges: set[tuple[str, str]]) -> dict[str, Grid] | None:
        """Adds a value to all grids at every end where the best value of a contender lies.

        Args:
          grids: contender -> its present grid.
          edges: settings with `LOW` or `HIGH`.

        Returns:
          The larger grids, or None if nothing may be added.
        """
        added = False
        result = {name: dict(grid) for name, grid in grids.items()}
        for name, grid in result.items():
            for setting, end in sorted(edges):
                first = self.grid(name)[setting]
                values = sorted(grid[setting]) if _is_extendable(first) else []
                beyond = [v for v in values if (v < min(first) if end == LOW else v > max(first))]
                if values and len(beyond) < self.extend:
                    last, other = (values[0], values[1]) if end == LOW else (values[-1], values[-2])
                    value = last * last / other
                    # Three digits, as folder names show them, unless close values need more to keep their distance.
                    rounded = (_rounded(value, digits) for digits in range(3, 18))
                    new = [v for v in rounded if 2 * abs(v - value) < abs(value - last)][:1]
                    grid[setting] = (*grid[setting], *new)
                    added = added or bool(new)
        return result if added else None


def as_tuples(value: Any) -> Any:
    """Returns a value with tuples for lists, nested ones too: settings of cases are keys of dicts."""
    return tuple(map(as_tuples, value)) if isinstance(value, list | tuple) else value


def require_seeds(seeds: Any, field: str) -> None:
    """Raises ConfigError, which names the field, unless `seeds` are whole numbers."""
    is_list = isinstance(seeds, Sequence) and all(isinstance(s, int) and not isinstance(s, bool) for s in seeds)
    require(is_list, field, f"is {seeds!r}, must be a list of whole numbers")


# Settings of the data that leave the text, its tokens and windows as they are.
_SAME_DATA = ("data.weights", "data.document_mask", "data.curriculum", "data.phases")


def _check_comparable(name: str, where: str) -> None:
    """Refuses settings with which losses of trials would be of other text or tokens, or of other training tokens."""
    is_free = name in _SAME_DATA or not name.startswith(("data.", "eval."))
    require(is_free, where, "cannot be tuned: losses on other data, tokens or windows cannot be compared")
    longer = ("train.steps", "train.batch_tokens")
    require(name not in longer, where, "cannot be tuned: the trials would have unequal training tokens")
    require(name != "model.iterations", where, "cannot be tuned: losses are means over the iterations")


def _is_extendable(values: Sequence[Any]) -> bool:
    return len(values) > 1 and all(isinstance(v, float) and v > 0 for v in values)


def _pick(values: Sequence[Any] | LogRange, fraction: float) -> Any:
    return values.at(fraction) if isinstance(values, LogRange) else values[int(fraction * len(values))]


def _rounded(value: float, digits: int = 3) -> float:
    return float(f"{value:.{digits}g}")
