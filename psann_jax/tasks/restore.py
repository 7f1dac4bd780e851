"""A trained run, from its workdir."""

import os
from dataclasses import dataclass
from pathlib import Path

import jax
from jax.sharding import Mesh

from psann_jax.config import CheckpointConfig, Config, ConfigError
from psann_jax.config_io import parse, to_dict
from psann_jax.data.tokenizer import Tokenizer
from psann_jax.errors import UserError
from psann_jax.models.registry import Network, Params
from psann_jax.nn.partition import param_shardings
from psann_jax.sample.sampler import Sampler, mesh_of
from psann_jax.tasks.language_model import make_network
from psann_jax.train.checkpoints import Checkpoints
from psann_jax.train.sharding import check_heads


@dataclass(frozen=True)
class Run:
    """What a run has learnt.

    Attributes:
      config: its settings, with the precision that is used now.
      network: of that precision.
      params: float32, on the mesh.
      tokenizer: the one it was trained with.
      step: updates that the parameters have had.
      data: the fingerprint of its text.
      mesh: where the parameters are.
    """

    config: Config
    network: Network
    params: Params
    tokenizer: Tokenizer
    step: int
    data: str
    mesh: Mesh

    def sampler(self) -> Sampler:
        """A sampler whose context is the window that the run was trained on."""
        return Sampler(
            self.network,
            self.params,
            eos_id=self.tokenizer.eos_id,
            max_length=self.config.data.max_length,
            mesh=self.mesh,
        )


def load_run(
    workdir: str | os.PathLike[str],
    step: int | str | None = None,
    *,
    precision: str = "run",
    mesh: tuple[int, int, int] = (1, 1, 1),
) -> Run:
    """Reads the parameters and the tokenizer of a run; of its training state nothing else is read.

    The config is the one that the checkpoint was saved with.

    Args:
      workdir: of the run.
      step: a saved step, "best" by validation loss, or "last"; None: the last.
      precision: of the computation: fp32, bf16 or fp16; "run": that of training; "auto": fp32 on CPU, where it is
        faster, else that of training.
      mesh: devices along data, fsdp and tensor.

    Raises:
      UserError: no run there, no such checkpoint, a damaged one, or the model cannot be divided over the mesh.
    """
    devices = mesh_of(mesh)
    checkpoints = Checkpoints(_checkpoint_directory(Path(workdir)), CheckpointConfig())
    found = _choose(checkpoints, step)
    metadata = checkpoints.metadata(found)
    try:
        config = _with_precision(parse(metadata["config"]), precision)
        tokenizer = Tokenizer.from_bytes(checkpoints.tokenizer(found))
    except (ConfigError, KeyError, ValueError) as error:
        raise UserError(f"{checkpoints.path(found)}: cannot be used by this version: {error}") from error
    network = make_network(config, tokenizer.vocab_size)
    check_heads(devices, config.model.n_heads)
    abstract = jax.tree.map(
        lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s),
        network.abstract,
        param_shardings(devices, network.abstract, network.infos),
    )
    params = checkpoints.restore(found, {"params": abstract})["params"]
    return Run(config, network, params, tokenizer, found, metadata["data"], devices)


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
