"""Parameters of one network for another, which may have other parameters, another vocabulary or more positions."""

from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.tree_util import keystr, tree_leaves_with_path, tree_map_with_path

from psann_jax.convert.vocabulary import VocabularyRows
from psann_jax.models.network import Network, Params
from psann_jax.nn.partition import ParamInfo, param_shardings
from psann_jax.utils.errors import UserError

_SHOWN = 3  # names of parameters in a line


@dataclass
class Transfer:
    """What becomes of each parameter.

    Attributes:
      source: the network that the parameters are of.
      target: the network that needs them.
      rows: of the new vocabulary; None if it is the same.
      origin: where the parameters come from, for messages.
      loaded: parameters that are taken as they are.
      matched: parameters whose rows are matched by token.
      positions: parameters with a row for each position, and how many rows are taken.
      new: parameters that only `target` has; they get its initial values.
      unused: parameters that only `source` has.
    """

    source: Network
    target: Network
    rows: VocabularyRows | None
    origin: str
    loaded: list[str] = field(default_factory=list)
    matched: list[str] = field(default_factory=list)
    positions: dict[str, int] = field(default_factory=dict)
    new: list[str] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Decides what becomes of each parameter.

        Raises:
          UserError: a parameter has another shape, or another type, that is not one of the vocabulary or positions.
        """
        there, infos = _by_name(self.source.abstract), _by_name(self.target.infos)
        here = _by_name(self.target.abstract)
        for name, wanted in here.items():
            if name in there:
                self._decide(name, there[name], wanted, infos[name])
            else:
                self.new.append(name)
        self.unused = [name for name in there if name not in here]

    def _decide(self, name: str, found: Any, wanted: Any, info: ParamInfo) -> None:
        differing = [
            axis
            for axis, a, b in zip(info.axes, found.shape, wanted.shape, strict=False)
            if a != b and not (axis == "vocab" and self.rows is not None)
        ]
        if len(found.shape) != len(wanted.shape) or any(axis != "positions" for axis in differing):
            raise UserError(
                f"train.init_from: {name} is {list(found.shape)} in {self.origin}, must be {list(wanted.shape)}"
            )
        if differing:
            axis = info.axes.index("positions")
            self.positions[name] = min(found.shape[axis], wanted.shape[axis])
        elif "vocab" in info.axes and self.rows is not None:
            self.matched.append(name)
        else:
            self.loaded.append(name)

    def apply(self, params: Params, mesh: Mesh, seed: int) -> Params:
        """Returns the parameters of `target`.

        Args:
          params: of `source`, on the mesh.
          mesh: the devices.
          seed: of the parameters that are new.
        """
        shardings = param_shardings(mesh, self.target.abstract, self.target.infos)

        def make(params: Params, key: jax.Array) -> Params:
            given = _by_name(params)
            initial = self.target.init(key) if self.new or self.positions else self.target.abstract

            def one(path: Any, initial: Any, info: ParamInfo) -> jax.Array:
                name = _name(path)
                return initial if name in self.new else self._fit(name, given[name], initial, info)

            made: Params = tree_map_with_path(one, initial, self.target.infos)
            return made

        with jax.set_mesh(mesh):
            done: Params = jax.jit(make, out_shardings=shardings)(params, jax.random.key(seed))
        return done

    def _fit(self, name: str, array: jax.Array, initial: Any, info: ParamInfo) -> jax.Array:
        if name in self.matched:
            assert self.rows is not None
            array = self.rows.apply(array, info.axes.index("vocab"))
        if name in self.positions:
            axis, n = info.axes.index("positions"), self.positions[name]
            kept = jax.lax.slice_in_dim(array, 0, n, axis=axis)
            added = jax.lax.slice_in_dim(initial, n, initial.shape[axis], axis=axis)
            array = jnp.concatenate([kept, added], axis=axis)
        return array

    def report(self) -> dict[str, Any]:
        """Returns the names of the parameters by what becomes of them, JSON-like."""
        report: dict[str, Any] = {"loaded": self.loaded, "new": self.new, "unused": self.unused}
        if self.rows is not None:
            n = len(self.rows.counts)
            tokens = {"tokens": n, "same_text": self.rows.n_matched, "means": n - self.rows.n_matched}
            report["vocabulary"] = {"parameters": self.matched, **tokens}
        if self.positions:
            report["positions"] = {name: {"loaded": n, "of": self._length(name)} for name, n in self.positions.items()}
        return report

    def _length(self, name: str) -> int:
        axis = _by_name(self.target.infos)[name].axes.index("positions")
        return int(_by_name(self.target.abstract)[name].shape[axis])

    def summary(self) -> str:
        """Returns the same as `report` in a line."""
        parts = [f"{len(self.loaded)} parameters loaded"]
        if self.rows is not None:
            parts.append(f"{self.rows.n_matched:,} of {len(self.rows.counts):,} tokens matched, the others are means")
        for name, n in self.positions.items():
            parts.append(f"{name}: {n} of {self._length(name)} positions loaded")
        parts += [f"{what} {_listed(names)}" for what, names in (("new", self.new), ("not used", self.unused)) if names]
        return "; ".join(parts)


def _name(path: Any) -> str:
    return keystr(path, simple=True, separator=".")


def _by_name(tree: Any) -> dict[str, Any]:
    return {_name(path): leaf for path, leaf in tree_leaves_with_path(tree)}


def _listed(names: list[str]) -> str:
    rest = len(names) - _SHOWN
    return ", ".join([*names[:_SHOWN], *([f"and {rest} more"] if rest > 0 else [])])
