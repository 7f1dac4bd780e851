"""A trained run, from its workdir."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import jax
from jax.sharding import Mesh

from psann_jax.config import CheckpointConfig, Config, ConfigError, DataConfig, MeshConfig
from psann_jax.config.io import parse, to_dict
from psann_jax.data.tokenizer import Tokenizer
from psann_jax.models.network import Network, Params
from psann_jax.nn.mesh import make_mesh
from psann_jax.nn.partition import param_shardings
from psann_jax.sample.sampler import Sampler
from psann_jax.tasks.lm import make_network
from psann_jax.tasks.sudoku import sudoku_network
from psann_jax.train.checkpoints import Checkpoints
from psann_jax.train.mesh import check_heads
from psann_jax.utils.errors import UserError


@dataclass(frozen=True)
class LoadedRun:
    """What a run of any task has learnt.

    Attributes:
      config: its settings, with the precision that is used now.
      network: of that precision.
      params: float32, on the mesh.
      step: updates that the parameters have had.
      data: the fingerprint of what it was trained on.
      mesh: where the parameters are.
    """

    config: Config
    network: Network
    params: Params
    step: int
    data: str
    mesh: Mesh


@dataclass(frozen=True)
class TextRun(LoadedRun):
    """What a run on text has learnt.

    Attributes:
      tokenizer: the one it was trained with.
    """

    tokenizer: Tokenizer

    def sampler(self) -> Sampler:
        """A sampler whose context is the window that the run was trained on."""
        return Sampler(
            self.network,
            self.params,
            eos_id=self.tokenizer.eos_id,
            max_length=self.config.data.max_length,
            mesh=self.mesh,
        )


_Result = TypeVar("_Result", bound=LoadedRun)


def load_text_run(
    workdir: str | os.PathLike[str],
    step: int | str | None = None,
    *,
    precision: str = "run",
    mesh: tuple[int, int, int] = (1, 1, 1),
    ema_params: bool = False,
) -> TextRun:
    """Reads the parameters and the tokenizer of a run on text; of its training state nothing else is read.

    The config is the one that the checkpoint was saved with.

    Args:
      workdir: of the run.
      step: a saved step, "best" by validation loss, or "last"; None: the last.
      precision: of the computation: fp32, bf16 or fp16; "run": that of training; "auto": fp32 on CPU, where it is
        faster, else that of training.
      mesh: devices along data, fsdp and tensor.
      ema_params: return the exponential moving average of the weights (train.ema_decay).

    Raises:
      UserError: no such run there, no such checkpoint, a damaged one, one without EMA weights, or the model
        cannot be divided over the mesh.
    """
    return _load(_text_model, DataConfig, TextRun, workdir, step, precision, mesh, ema_params)


def load_run(
    workdir: str | os.PathLike[str],
    step: int | str | None = None,
    *,
    data_section: type = object,
    precision: str = "run",
    mesh: tuple[int, int, int] = (1, 1, 1),
    ema_params: bool = False,
) -> LoadedRun:
    """The parameters of a run of any task, or of those with a certain class of `config.data`; see `load_text_run`."""
    return _load(_any_model, data_section, LoadedRun, workdir, step, precision, mesh, ema_params)


def _load(
    open_model: Callable[[Config, Checkpoints, int], tuple[Network, dict[str, Any]]],
    data_section: type,
    result: type[_Result],
    workdir: str | os.PathLike[str],
    step: int | str | None,
    precision: str,
    mesh: tuple[int, int, int],
    ema_params: bool,
) -> _Result:
    devices = make_mesh(MeshConfig(*mesh), all_devices=False)
    checkpoints = Checkpoints(_checkpoint_directory(Path(workdir)), CheckpointConfig())
    found = _choose(checkpoints, step)
    metadata = checkpoints.metadata(found)
    try:
        config = _with_precision(parse(metadata["config"]), precision)
        if not isinstance(config.data, data_section):
            raise UserError(f"{workdir}: is a run of base {config.model.base}, which this command is not for")
        network, more = open_model(config, checkpoints, found)
    except (ConfigError, KeyError, ValueError) as error:
        raise UserError(f"{checkpoints.path(found)}: cannot be used by this version: {error}") from error
    if ema_params and not config.train.ema_decay:
        raise UserError(f"{checkpoints.path(found)}: has no EMA weights, because train.ema_decay was 0")
    check_heads(devices, config.model.n_heads)
    abstract = jax.tree.map(
        lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s),
        network.abstract,
        param_shardings(devices, network.abstract, network.infos),
    )
    weights = "ema_params" if ema_params else "params"
    params = checkpoints.restore(found, {weights: abstract})[weights]
    return result(config, network, params, found, metadata["data"], devices, **more)


def _text_model(config: Config, checkpoints: Checkpoints, step: int) -> tuple[Network, dict[str, Any]]:
    tokenizer = Tokenizer.from_bytes(checkpoints.tokenizer(step))
    return make_network(config, tokenizer.vocab_size), {"tokenizer": tokenizer}


def _any_model(config: Config, checkpoints: Checkpoints, step: int) -> tuple[Network, dict[str, Any]]:
    on_text = isinstance(config.data, DataConfig)
    return _text_model(config, checkpoints, step)[0] if on_text else sudoku_network(config), {}


def _checkpoint_directory(workdir: Path) -> Path:
    if not workdir.is_dir():
        raise UserError(f"{workdir}: there is no such directory; name the workdir of a run")
    directory = workdir / "checkpoints"
    if not directory.is_dir():
        raise UserError(f"{workdir}: holds no checkpoints; name the workdir of a run that has saved one")
    return directory


def _choose(checkpoints: Checkpoints, step: int | str | None) -> int:
    """The step that is meant."""
    if step in (None, "last"):
        found = checkpoints.latest()
        if found is None:
            raise UserError(f"{checkpoints.directory}: holds no complete checkpoint")
        return found
    if step == "best":
        found = checkpoints.best()
        if found is None:
            raise UserError(f"{checkpoints.directory}: no checkpoint has a validation loss; take the last one")
        return found
    if not str(step).isdecimal():
        raise UserError(f"checkpoint: is {step!r}, must be last, best or one of the steps {checkpoints.steps()}")
    return int(str(step))


def _with_precision(config: Config, precision: str) -> Config:
    if precision == "auto":
        precision = "fp32" if jax.default_backend() == "cpu" else "run"
    if precision == "run":
        return config
    settings = to_dict(config)
    settings["train"]["precision"] = precision
    return parse(settings)
