"""Opens what `train.init_from` names: a run or a file with weights, for a new run to start from."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from psann_jax.config import Config, ConfigError, DataConfig, ModelConfig, TokenizerConfig, require
from psann_jax.config.checks import require_known
from psann_jax.config.io import flatten, to_dict
from psann_jax.convert.read import names_run, read_weights
from psann_jax.convert.transfer import Transfer
from psann_jax.convert.vocabulary import match_vocabularies
from psann_jax.data.loader import named_tokenizer
from psann_jax.data.tokenizer import Tokenizer
from psann_jax.models.network import Network, Params
from psann_jax.nn.partition import param_shardings
from psann_jax.runs.restore import open_run, restore_params
from psann_jax.train.start import StartingWeights, require_finite
from psann_jax.utils.errors import UserError
from psann_jax.utils.files import storage_errors
from psann_jax.utils.locations import BucketUrl, given_location

# Model settings that may differ: they decide how values are computed, what training adds to the loss, or the initial
# values of parameters, which are replaced.
_FREE = (
    "model.attention",
    "model.kernels",
    "model.dropout",
    "model.wave.dropout",
    "model.repulsion.",
    "model.init",
    "model.radius_init",
    "model.spectral.gate_init",
    "model.sine.trainable",
    "model.sine.learnable",
    *(f"model.sine.{name}_{end}" for name in ("amp", "freq", "damp") for end in ("init", "init_std", "range")),
    # Their parameters are matched by row.
    "model.vocab_size",
    "model.n_positions",
)


@dataclass(frozen=True)
class OpenedStart:
    """A run or file that a new run starts from; implements `psann_jax.train.start.Start`.

    Attributes:
      config: of the new run.
      network: of the weights.
      saved_tokenizer: of the weights; None if it is not known.
      read: returns the parameters on a mesh.
      facts: what identifies the weights, JSON-like.
      saved_config: that of the run that trained them.
    """

    config: Config
    network: Network
    saved_tokenizer: Tokenizer | None
    read: Callable[[Mesh], Params]
    facts: dict[str, Any]
    saved_config: dict[str, Any]

    @property
    def tokenizer(self) -> Tokenizer | None:
        """See `psann_jax.train.start.Start`."""
        data = self.config.data
        return self.saved_tokenizer if isinstance(data, DataConfig) and not data.tokenizer.path else None

    def weights(self, network: Network, mesh: Mesh, seed: int) -> StartingWeights:
        """See `psann_jax.train.start.Start`.

        Raises:
          UserError: the weights are damaged, or do not fit the network.
        """
        rows = match_vocabularies(self.saved_tokenizer, self._new_tokenizer(), self.network, network)
        transfer = Transfer(self.network, network, rows, self.config.train.init_from)
        params = transfer.apply(self.read(mesh), mesh, seed)
        changes = {name: list(values) for name, values in _differences(self.network.config, network.config).items()}
        fact = f"{self.config.train.init_from}{self._which()}: {transfer.summary()}"
        report = {**self.facts, "changed_settings": changes, **transfer.report(), "config": self.saved_config}
        return StartingWeights(params, fact, report)

    def _new_tokenizer(self) -> Tokenizer | None:
        data = self.config.data
        if not isinstance(data, DataConfig) or not data.tokenizer.path:
            return self.saved_tokenizer
        return named_tokenizer(data)

    def _which(self) -> str:
        step = self.facts.get("step")
        if step is None:
            return ""
        return f" at step {step}{' (EMA)' if self.config.train.init_ema else ''}"


def open_start(config: Config) -> OpenedStart:
    """Opens what `train.init_from` of a config names, and checks that the config can start from it.

    Args:
      config: of the new run, with `train.init_from`.

    Raises:
      UserError: there are no such weights; the model differs; or the config asks for another tokenizer than theirs
        without naming it.
    """
    train = config.train
    location = given_location(train.init_from, "train.init_from")
    try:
        with storage_errors(str(location), "read"):
            is_run = names_run(location)
        opened = _open_run(config, location) if is_run else _open_file(config, location)
    except UserError as error:
        named = str(error).startswith("train.")
        raise error if named else UserError(f"train.init_from: {error}") from error
    _check_model(config, opened.network)
    _check_tokenizer(config, opened)
    return opened


def _open_run(config: Config, path: Path | BucketUrl) -> OpenedStart:
    saved = open_run(str(path), config.train.init_checkpoint)
    has_ema = saved.config.train.ema_decay > 0
    problem = f"but {path} has no EMA weights, because its train.ema_decay was 0; leave it False"
    require(has_ema or not config.train.init_ema, "train.init_ema", f"is True, {problem}")
    item = "ema_params" if config.train.init_ema else "params"
    facts = {"from": str(path), "step": saved.step, "weights": item, "data": saved.data}
    tokenizer = saved.tokenizer() if isinstance(saved.config.data, DataConfig) else None

    def read(mesh: Mesh) -> Params:
        return restore_params(saved, mesh, ema_params=config.train.init_ema)

    return OpenedStart(config, saved.network, tokenizer, read, facts, to_dict(saved.config))


def _open_file(config: Config, path: Path | BucketUrl) -> OpenedStart:
    for name in ("init_checkpoint", "init_ema"):
        default = getattr(type(config.train), name)
        given = getattr(config.train, name)
        require(given == default, f"train.{name}", f"has no effect, because {path} is no run; leave it at {default!r}")
    weights = read_weights(str(path))
    require_finite(weights.params, str(path))  # now, because JAX compares arrays that processes put on their devices
    network = weights.network()

    def read(mesh: Mesh) -> Params:
        return jax.device_put(weights.params, param_shardings(mesh, network.abstract, network.infos))

    return OpenedStart(config, network, weights.tokenizer, read, {"from": str(path)}, to_dict(weights.config))


def _differences(source: ModelConfig, model: ModelConfig) -> dict[str, tuple[Any, Any]]:
    """Returns the model settings that differ, as (there, here), without those that may."""
    there, here = (dict(flatten({"model": to_dict(section.resolve())})) for section in (source, model))
    common = there.keys() & here.keys() if source.base != model.base else there.keys() | here.keys()
    return {
        name: (there.get(name), here.get(name))
        for name in sorted(common)
        if there.get(name) != here.get(name) and not name.startswith(_FREE)
    }


def _check_model(config: Config, source: Network) -> None:
    """Raises ConfigError if the model of a config differs from that of the weights by more than it names."""
    allowed, path = config.train.init_changes, config.train.init_from
    differing = _differences(source.config, config.model)
    settings = dict(flatten({"model": to_dict(config.model)}))
    for name in allowed:
        require_known(name, settings, "train.init_changes", f"{name!r} is no model setting")
        require(name in differing, "train.init_changes", f"names {name}, which is the same in {path}; omit it")
    for name, (there, here) in differing.items():
        if name not in allowed:
            fix = f"set it to {there!r}, or name it in train.init_changes"
            raise ConfigError(f"{name}: is {here!r}, but {there!r} in {path}; {fix}")


def _check_tokenizer(config: Config, opened: OpenedStart) -> None:
    """Raises ConfigError if tokenizer settings would have no effect, or there is no tokenizer."""
    data, path = config.data, config.train.init_from
    if not isinstance(data, DataConfig) or data.tokenizer.path:
        return
    require(
        opened.saved_tokenizer is not None,
        "data.tokenizer.path",
        f'is "", but {path} has no tokenizer; name the one that it was trained with',
    )
    default, saved = TokenizerConfig(), opened.saved_config["data"]["tokenizer"]
    for name, value in to_dict(data.tokenizer).items():
        allowed = list(dict.fromkeys((getattr(default, name), saved[name])))
        require(
            value in allowed,
            f"data.tokenizer.{name}",
            f"is {value!r}, but the tokenizer of {path} is used; set it to {' or '.join(map(repr, allowed))}, or name "
            "another tokenizer with data.tokenizer.path",
        )
