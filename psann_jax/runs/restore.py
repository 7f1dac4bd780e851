"""Loads a trained run from its workdir; start here to use one."""

import dataclasses
import os
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from psann_jax.config import Config, ConfigError, DataConfig, MeshConfig, TextModelConfig
from psann_jax.config.io import parse, to_dict, upgrade_saved
from psann_jax.data.tokenizer import Tokenizer
from psann_jax.models.network import Network, Params, make_network
from psann_jax.nn.mesh import make_mesh
from psann_jax.nn.partition import param_shardings
from psann_jax.sample.sampler import Sampler
from psann_jax.train.checkpoint_reader import CheckpointReader
from psann_jax.train.mesh import check_heads
from psann_jax.train.remote_checkpoints import RemoteRun
from psann_jax.train.start import DRAWN, GIVEN, ORIGIN
from psann_jax.utils.errors import UserError
from psann_jax.utils.locations import given_location

_CHECKPOINTS = "checkpoints"  # directory in a workdir
_SPECIAL_ATTENTION = ("cudnn", "triton", "splash", "pallas")  # values of model.attention that not all devices support


@dataclass(frozen=True)
class LoadedRun:
    """The network of a run and its trained parameters.

    Attributes:
      config: the settings of the run, with the precision in use, and with model.attention=auto if that demands a kernel
        for special devices.
      network: computes in that precision.
      params: float32, on the mesh.
      step: number of updates.
      data: fingerprint of the training data.
      mesh: the devices that hold the parameters.
      starts_from_seed: whether the parameters were drawn from config.seed before training, as far as that is known.
    """

    config: Config
    network: Network
    params: Params
    step: int
    data: str
    mesh: Mesh
    starts_from_seed: bool


@dataclass(frozen=True)
class TextRun(LoadedRun):
    """A language model, its trained parameters and its tokenizer.

    Attributes:
      tokenizer: that of the training.
    """

    tokenizer: Tokenizer

    def sampler(self, n_alternatives: int = 0, has_adjustments: bool = False) -> Sampler:
        """Returns a sampler whose context is as long as the windows in training.

        Args:
          n_alternatives: see `Sampler`.
          has_adjustments: see `Sampler`.
        """
        return Sampler(
            self.network,
            self.params,
            eos_id=self.tokenizer.eos_id,
            max_length=self.config.data.max_length,
            mesh=self.mesh,
            n_alternatives=n_alternatives,
            has_adjustments=has_adjustments,
        )


def load_run(
    workdir: str | os.PathLike[str],
    step: int | str | None = None,
    *,
    data_section: type | None = None,
    precision: str = "run",
    mesh: tuple[int, ...] = (1, 1, 1),
    ema_params: bool = False,
) -> LoadedRun:
    """Loads the network and the parameters of a run of any family; the rest of the training state is not read.

    The config is the one in the checkpoint.

    Args:
      workdir: of the run, a path or the URL of a directory in a bucket.
      step: a saved step, "best" by validation loss, or "last"; None is the last.
      data_section: class that the `data` section must have; None accepts all.
      precision: of the computation: fp32, bf16 or fp16; "run" is that of training; "auto" is fp32 on a CPU, where it is
        faster, and that of training elsewhere.
      mesh: devices along data, fsdp, tensor and, optionally, context, which divides windows in an evaluation.
      ema_params: load the exponential moving average of the weights (train.ema_decay) instead.

    Raises:
      UserError: no such run or checkpoint, a damaged one, one of another family or without EMA weights, or the mesh
        does not divide the model.
    """
    return _restore(open_run(workdir, step, precision, data_section), mesh, ema_params)


def load_text_run(
    workdir: str | os.PathLike[str],
    step: int | str | None = None,
    *,
    precision: str = "run",
    mesh: tuple[int, ...] = (1, 1, 1),
    ema_params: bool = False,
) -> TextRun:
    """Loads the network, the parameters and the tokenizer of a language model; see `load_run`."""
    saved = open_run(workdir, step, precision, DataConfig)
    run = _restore(saved, mesh, ema_params)
    fields = {f.name: getattr(run, f.name) for f in dataclasses.fields(run)}
    return TextRun(**fields, tokenizer=saved.tokenizer())


@dataclass(frozen=True)
class SavedRun:
    """A checkpoint whose parameters have not been read yet.

    Attributes:
      checkpoints: those of the run.
      step, config, network, data, starts_from_seed: as in `LoadedRun`, without adapters (train.lora_rank).
      stored: the network as it was trained.
      copy: the temporary directory of a copy from a bucket, which is deleted with this object; None on a disk.
    """

    checkpoints: CheckpointReader
    step: int
    config: Config
    network: Network
    data: str
    starts_from_seed: bool
    stored: Network
    copy: tempfile.TemporaryDirectory[str] | None = None

    def tokenizer(self) -> Tokenizer:
        """Reads the tokenizer; raises UserError if the checkpoint has none or is damaged."""
        return _tokenizer(self.checkpoints, self.step)


def open_run(
    workdir: str | os.PathLike[str], step: int | str | None, precision: str = "run", section: type | None = None
) -> SavedRun:
    """Finds a checkpoint and builds the network for it; the arguments are those of `load_run`.

    Raises:
      UserError: no such run or checkpoint, or one of another family.
    """
    checkpoints, found, copy = _find(workdir, step)
    metadata = checkpoints.metadata(found)
    try:
        config = _for_any_device(_with_precision(parse(upgrade_saved(metadata["config"])), precision))
        if section is not None and not isinstance(config.data, section):
            raise UserError(f"{workdir}: is a run of base {config.model.base}, which this command does not support")
        has_tokenizer = isinstance(config.model, TextModelConfig)
        vocab_size = _tokenizer(checkpoints, found).vocab_size if has_tokenizer else None
        stored = network = make_network(config, vocab_size)
        if stored.lora is not None:
            config = _without_adapters(config)
            network = make_network(config, vocab_size)
    except (ConfigError, KeyError, ValueError) as error:
        raise UserError(f"{checkpoints.path(found)}: cannot be used by this version: {error}") from error
    # Earlier versions did not say; the weights may then have been given in Python.
    origin = metadata.get(ORIGIN) or (GIVEN if config.train.init_from else DRAWN)
    return SavedRun(checkpoints, found, config, network, metadata["data"], origin == DRAWN, stored, copy)


_Copy = tempfile.TemporaryDirectory[str]


def _find(workdir: str | os.PathLike[str], step: int | str | None) -> tuple[CheckpointReader, int, _Copy | None]:
    """Returns the checkpoints of a run, the chosen one of them, and the directory of their copies from a bucket."""
    location = given_location(workdir, "workdir")
    if isinstance(location, Path):
        checkpoints = CheckpointReader(_checkpoint_directory(location))
        return checkpoints, _choose(checkpoints, step, str(checkpoints.directory)), None
    copy = tempfile.TemporaryDirectory(prefix="psann_jax-")
    run = RemoteRun(location, Path(copy.name))
    checkpoints = CheckpointReader(run.directory)
    if not run.directory.is_dir():
        raise UserError(f"{location}: has no checkpoints; give the workdir of a run that has saved one")
    found = _choose(checkpoints, step, f"{location}/{_CHECKPOINTS}")
    run.pull(found)
    return checkpoints, found, copy


def _restore(saved: SavedRun, mesh: tuple[int, ...], ema_params: bool) -> LoadedRun:
    data, fsdp, tensor, context = (*mesh, 1)[:4]
    devices = make_mesh(MeshConfig(data, fsdp, tensor, context), all_devices=False)
    check_heads(devices, saved.config.model.n_heads, getattr(saved.config.model, "n_kv_heads", 0))
    params = restore_params(saved, devices, ema_params=ema_params)
    return LoadedRun(saved.config, saved.network, params, saved.step, saved.data, devices, saved.starts_from_seed)


def restore_params(saved: SavedRun, mesh: Mesh, *, ema_params: bool) -> Params:
    """Reads the parameters of a checkpoint onto a mesh, and merges adapters into them.

    Args:
      saved: from `open_run`.
      mesh: the devices.
      ema_params: read the exponential moving average of the weights instead.

    Raises:
      UserError: the checkpoint is damaged or has no EMA weights.
    """
    stored, path = saved.stored, saved.checkpoints.path(saved.step)
    if ema_params and not saved.config.train.ema_decay:
        raise UserError(f"{path}: has no EMA weights, because train.ema_decay was 0")
    abstract = jax.tree.map(
        lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s),
        stored.abstract,
        param_shardings(mesh, stored.abstract, stored.infos),
    )
    item = "ema_params" if ema_params else "params"
    params: Params = saved.checkpoints.restore(saved.step, {item: abstract})[item]
    if stored.lora is None:
        return params
    shardings = param_shardings(mesh, saved.network.abstract, saved.network.infos)
    merged: Params = jax.jit(stored.lora.merge, out_shardings=shardings)(params)
    return merged


def _without_adapters(config: Config) -> Config:
    default = type(config.train)()
    plain = dataclasses.replace(config.train, lora_rank=default.lora_rank, lora_alpha=default.lora_alpha)
    return dataclasses.replace(config, train=plain)


def _tokenizer(checkpoints: CheckpointReader, step: int) -> Tokenizer:
    return Tokenizer.from_bytes(checkpoints.tokenizer(step))


def _checkpoint_directory(workdir: Path) -> Path:
    if not workdir.is_dir():
        raise UserError(f"{workdir}: there is no such directory; give the workdir of a run")
    directory = workdir / _CHECKPOINTS
    if not directory.is_dir():
        refuse_checkpoint(workdir)
        raise UserError(f"{workdir}: has no checkpoints; give the workdir of a run that has saved one")
    return directory


def refuse_checkpoint(path: Path) -> None:
    """Raises UserError if a directory lies in the checkpoints of a run, and says how to name the checkpoint."""
    step = re.fullmatch(r"step_(\d+)", path.name)
    directory = path.parent if step else path
    if directory.name == _CHECKPOINTS and directory.is_dir():
        fix = f"with checkpoint {step[1]}" if step else "and choose one of its checkpoints"
        raise UserError(f"{path}: is a part of a run; give its workdir {directory.parent} {fix}")


def _choose(checkpoints: CheckpointReader, step: int | str | None, where: str) -> int:
    """Resolves "last" and "best" to a step; `where` names the checkpoints in messages."""
    if step in (None, "last"):
        found = checkpoints.latest()
        if found is None:
            raise UserError(f"{where}: has no complete checkpoint")
        return found
    if step == "best":
        found = checkpoints.best()
        if found is None:
            raise UserError(f"{where}: no checkpoint has a validation loss; use the last one")
        return found
    if not re.fullmatch(r"\d{1,18}", str(step)):
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


def _for_any_device(config: Config) -> Config:
    """Returns the config with attention that every device and precision has; all kinds compute the same function."""
    model: Any = config.model
    if getattr(model, "attention", "auto") not in _SPECIAL_ATTENTION:
        return config
    return dataclasses.replace(config, model=dataclasses.replace(model, attention="auto"))
