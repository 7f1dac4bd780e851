"""Keywords of the public API: the setting that each one stands for, and defaults that fit the text and the device."""

import contextlib
import dataclasses
import math
import sys
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax

from psann_jax.config import (
    CheckpointConfig,
    Config,
    ConfigError,
    DataConfig,
    EvalConfig,
    TokenizerConfig,
    TrainConfig,
    require,
)
from psann_jax.config.families import family
from psann_jax.config.io import field_types, parse, to_dict
from psann_jax.config.names import nearest
from psann_jax.config.values import require_whole
from psann_jax.sample.settings import GenerationOptions, Sampling
from psann_jax.utils.errors import UserError
from psann_jax.utils.files import read_json, storage_errors

_MIN_STEPS = 100  # of a fit without a number of epochs or steps
_MIN_WINDOWS = 64  # in the text, with the default window length
_MIN_UPDATES = 8  # per epoch, with the default batch
# Settings of `train` for which the API has `psannLM.load`.
_INIT = ("init_from", "init_checkpoint", "init_ema", "init_changes")
# Defaults on a CPU and elsewhere; "model" is d_model, n_layers and n_heads.
_CPU = {"model": (128, 4, 4), "max_length": 256, "batch_tokens": 4096, "amp": "fp32"}
_ACCELERATOR = {"model": (512, 8, 8), "max_length": 1024, "batch_tokens": 131072, "amp": "bf16"}


def note(text: str) -> None:
    """Reports an automatic choice on standard error."""
    print(f"note: {text}", file=sys.stderr, flush=True)


def device_defaults() -> dict[str, Any]:
    """Model sizes, window length, batch size and precision suited to the available device."""
    return _CPU if jax.default_backend() == "cpu" else _ACCELERATOR


@dataclasses.dataclass(frozen=True)
class Keywords:
    """The keywords of a function, each with the dotted name of its setting."""

    settings: Mapping[str, str]

    def section(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Converts keywords to the nested mapping that `psann_jax.config.io.parse` takes; None values are omitted.

        Raises:
          ConfigError: a keyword is unknown; the message suggests the nearest valid one.
        """
        nested: dict[str, Any] = {}
        for keyword, value in given.items():
            require(keyword in self.settings, keyword, f"unknown argument{self._suggestion(keyword)}")
            if value is None:
                continue
            *parents, leaf = self.settings[keyword].split(".")
            node = nested
            for parent in parents:
                node = node.setdefault(parent, {})
            node[leaf] = value
        return nested

    def _suggestion(self, keyword: str) -> str:
        renamed = {dotted.rpartition(".")[2]: name for name, dotted in self.settings.items()}
        return f", it is called {renamed[keyword]} here" if keyword in renamed else nearest(str(keyword), self.settings)

    @contextlib.contextmanager
    def named(self) -> Iterator[None]:
        """Replaces the dotted name at the beginning of an error message by its keyword."""
        try:
            yield
        except UserError as error:
            name, colon, rest = str(error).partition(":")
            keyword = {dotted: k for k, dotted in self.settings.items()}.get(name)
            if not colon or keyword is None:
                raise
            raise ConfigError(f"{keyword}:{rest}") from error


def _names(section: type, *omitted: str) -> list[str]:
    return [f.name for f in dataclasses.fields(section) if f.name not in omitted]


DATA = Keywords(
    {
        "tokenizer": "data.tokenizer.kind",
        "tokenizer_model_path": "data.tokenizer.path",
        "pack_sequences": "data.pack",
        "val_split": "data.valid_fraction",
        "seed": "data.split_seed",
        **{n: f"data.tokenizer.{n}" for n in _names(TokenizerConfig, "kind", "path")},
        **{n: f"data.{n}" for n in _names(DataConfig, "tokenizer", "pack", "valid_fraction", "split_seed")},
    }
)

FIT = Keywords(
    {
        "seed": "seed",
        "amp": "train.precision",
        "grad_accum_steps": "train.grad_accum",
        "max_steps": "train.steps",
        **{n: f"train.{n}" for n in _names(TrainConfig, "precision", "grad_accum", "steps", *_INIT)},
        **{f"eval_{n}": f"eval.{n}" for n in _names(EvalConfig)},
        **{f"checkpoint_{n}": f"checkpoint.{n}" for n in _names(CheckpointConfig)},
        "fsdp": "mesh.fsdp",
        "tensor": "mesh.tensor",
        "context": "mesh.context",
        "sequence": "mesh.sequence",
    }
)

# Generation has no config section, so its keywords are the names of the settings.
GENERATE = Keywords({n: n for n in (*_names(Sampling), *_names(GenerationOptions, "max_prompt_tokens"), "on_text")})

# Prefixes of the keywords of nested model sections. The settings of `sine` are the keys of sine_params.
_PREFIXES = {"wave": "wave_", "repulsion": "repulsion_"}


def model_keywords(base: str) -> tuple[Keywords, Keywords]:
    """Returns the keywords of a base, and the keys of its sine_params.

    Raises:
      ConfigError: the base is unknown or not a language model.
    """
    settings, sine = {"rope": "model.positional_encoding"}, {}
    with Keywords({"base": "model.base"}).named():
        require(isinstance(base, str), "model.base", f"is {base!r}, must be the name of a base")
        chosen = family(base)
        require(issubclass(chosen.data, DataConfig), "model.base", f"is {base}, which is not a language model")
        hints = field_types(chosen.model)
    for name, hint in hints.items():
        if name == "sine":
            sine = {n: f"model.sine.{n}" for n in _names(hint)}
        elif dataclasses.is_dataclass(hint):
            prefix = _PREFIXES.get(name, "")
            settings |= {f"{prefix}{n}": f"model.{name}.{n}" for n in _names(typing.cast(type, hint))}
        else:
            settings[name] = f"model.{name}"
    return Keywords(settings), Keywords(sine)


# --- defaults that depend on the text -------------------------------------------------------------------


def default_vocab_size(n_bytes: int) -> int:
    """Vocabulary size for a text: a power of two near one token per 50 bytes, from 512 to 32000."""
    return min(max(512, 1 << max(n_bytes // 50, 1).bit_length() - 1), TokenizerConfig.vocab_size)


def default_max_length(n_tokens: int) -> int:
    """Window length for a text: a power of two that gives at least 64 windows, limited by the device default."""
    return int(min(device_defaults()["max_length"], max(8, 1 << max(n_tokens // _MIN_WINDOWS, 1).bit_length() - 1)))


def default_lr(d_model: int) -> float:
    """Peak learning rate: the best one of the sweeps at width 256, about 2e-3, scaled by 1 / sqrt(d_model)."""
    return round(3e-3 * math.sqrt(128 / d_model), 6)


def fitting_batch_tokens(asked: int | None, n_windows: int, max_length: int, unit: int) -> int:
    """Tokens per batch: as requested, but at most the text, rounded down to a multiple of `unit`.

    Args:
      asked: the requested number; None for the device default, limited so that an epoch has at least 8 updates.
      n_windows: number of windows in the training text.
      max_length: tokens per window.
      unit: the result is a multiple of this number of tokens, so that devices and micro-batches divide it.
    """
    most = n_windows * max_length // (_MIN_UPDATES if asked is None else 1)
    wanted = min(device_defaults()["batch_tokens"] if asked is None else asked, most)
    return max(wanted // unit, 1) * unit


def number_of_steps(per_epoch: int, epochs: int | None, steps_per_epoch: int | None, max_steps: int | None) -> int:
    """Returns the number of updates of a fit.

    Args:
      per_epoch: updates per pass over the text.
      epochs: passes over the text; None means one, but at least 100 updates.
      steps_per_epoch: replaces per_epoch.
      max_steps: upper bound; the exact number if `epochs` is None.

    Raises:
      ConfigError: a number is not whole or below 1.
    """
    for name, value in (("epochs", epochs), ("steps_per_epoch", steps_per_epoch), ("max_steps", max_steps)):
        if value is not None:
            require_whole(name, value, 1)
    per_epoch = steps_per_epoch or per_epoch
    if epochs is None:
        return max_steps or (per_epoch if steps_per_epoch else max(per_epoch, _MIN_STEPS))
    return min(epochs * per_epoch, max_steps or epochs * per_epoch)


def default_model(given: Mapping[str, Any]) -> dict[str, Any]:
    """Default model sizes for the device; d_mlp is four times d_model."""
    sizes: dict[str, Any] = dict(zip(("d_model", "n_layers", "n_heads"), device_defaults()["model"], strict=True))
    d_model = given["d_model"] or sizes["d_model"]
    return sizes | ({"d_mlp": 4 * d_model} if isinstance(d_model, int) else {})


def sized_as_in(earlier: Path, model: Any) -> Any:
    """Returns the `model` section of a trained model with the sizes that a run leaves to its data left to them, too.

    Args:
      earlier: path of config.json in a workdir, which need not exist.
      model: the section, with all sizes.

    Raises:
      UserError: the file is damaged.
    """
    before = _saved_section(earlier, "model")
    left = [name for name in ("vocab_size", "n_positions") if before.get(name) == 0 and hasattr(model, name)]
    return dataclasses.replace(model, **dict.fromkeys(left, 0))


def _saved_section(earlier: Path, name: str) -> dict[str, Any]:
    """Returns a section of a config.json; {} if there is no such file."""
    with storage_errors(earlier, "read"):
        exists = earlier.exists()
    section: dict[str, Any] = read_json(earlier).get(name, {}) if exists else {}
    return section


def fit_config(
    model: Any,
    data: DataConfig,
    n_windows: int,
    given: Mapping[str, Any],
    epochs: Mapping[str, int | None],
    earlier: Path,
) -> Config:
    """Returns the config of a fit.

    Args:
      model: the `model` section.
      data: the `data` section with its final max_length.
      n_windows: number of windows in the training text.
      given: keywords of `FIT`; None means the default.
      epochs: the remaining arguments of `number_of_steps`.
      earlier: path of config.json in the workdir. If the file exists, the run is resumed, and its values replace the
        defaults that depend on text and device.

    Raises:
      ConfigError: a keyword is unknown or a value is invalid.
    """
    sections = FIT.section(given)
    train = sections.setdefault("train", {})
    before = _saved_section(earlier, "train")
    defaults = {"lr": default_lr(model.d_model), "precision": device_defaults()["amp"]}
    for name in ("lr", "precision", "batch_tokens"):
        train.setdefault(name, before.get(name, defaults.get(name)))
    rest: dict[str, Any] = {"model": to_dict(model), "data": to_dict(data)}
    # Checks the values that the following numbers depend on.
    checked = parse({**sections, **rest, "train": {**train, "batch_tokens": data.max_length * 2**20, "grad_accum": 1}})
    n_devices, mesh = jax.device_count(), checked.mesh
    parts = mesh.fsdp * mesh.tensor * mesh.context
    name = next((axis for axis in ("fsdp", "tensor") if getattr(mesh, axis) > 1), "context")
    require(n_devices % parts == 0, name, f"{parts} parts do not divide {n_devices} devices")
    accum = train.get("grad_accum", 1)
    require_whole("grad_accum_steps", accum, 1)
    asked = train["batch_tokens"]
    if asked is not None:
        require_whole("batch_tokens", asked, 1)
    unit = data.max_length * accum * (n_devices // (mesh.tensor * mesh.context))
    train["batch_tokens"] = fitting_batch_tokens(asked, n_windows, data.max_length, unit)
    if asked is not None and train["batch_tokens"] != asked:
        note(
            f"batch_tokens is {train['batch_tokens']}, not {asked}: the text has {n_windows} windows of "
            f"{data.max_length} tokens, and a batch is a multiple of {unit}"
        )
    rows = train["batch_tokens"] // data.max_length
    train["steps"] = number_of_steps(max(n_windows // rows, 1), **epochs)
    train.setdefault("warmup_steps", before.get("warmup_steps", min(100, train["steps"] // 10)))
    return parse({**sections, **rest})
