"""The language model of the Python API; it trains and generates with the same code as the command line.

texts = ["the sun sings", "a wave falls", ...]
model = psannLM(base="waveresnet")
model.fit(psannLMDataPrep(texts))

Every keyword is a setting of `psann_jax.config`. It takes effect or raises an error.
"""

import contextlib
import dataclasses
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self

import jax

from psann_jax.api import keywords as settings
from psann_jax.api.data import psannLMDataPrep
from psann_jax.config import Config, require
from psann_jax.config.io import parse
from psann_jax.convert.read import PICKLED, names_run, read_weights
from psann_jax.convert.run import read_run
from psann_jax.convert.safetensors_file import DEFAULT_NAME, SUFFIX, write_safetensors
from psann_jax.convert.weights import Weights
from psann_jax.data.loader import load_text
from psann_jax.data.tokenizer import Tokenizer
from psann_jax.models.network import Params
from psann_jax.runs.training import train_run
from psann_jax.sample.sampler import Sampler
from psann_jax.sample.settings import UNFILTERED, GenerationOptions, Sampling
from psann_jax.sample.text import Completion, TextSampler
from psann_jax.train.callbacks import Callback, Callbacks
from psann_jax.train.checkpoint_reader import CheckpointReader
from psann_jax.train.metrics import METRICS, read_metrics
from psann_jax.train.workdir import CHECKPOINTS, CONFIG
from psann_jax.utils.errors import UserError
from psann_jax.utils.files import given_path, storage_errors
from psann_jax.utils.locations import given_location


class psannLM:
    """A language model.

    Attributes:
      base: name of the architecture.
      history: rows of metrics.jsonl of the last `fit`: dicts with kind ("train" or "eval"), step, loss, ppl, ...
      summary: results of the last `fit`, as in summary.json: steps, val_loss, val_ppl, tokens_per_s, ...
    """

    def __init__(
        self,
        base: str = "waveresnet",
        d_model: int | None = None,
        n_layers: int | None = None,
        n_heads: int | None = None,
        d_mlp: int | None = None,
        vocab_size: int | None = None,
        sine_params: Mapping[str, Any] | None = None,
        rope: bool | None = None,
        positional_encoding: str | None = None,
        **options: Any,
    ):
        """Checks the settings; `fit` initialises the weights.

        Args:
          base: modern, transformer, respsann, sgrpsann, waveresnet, ngt or vanilla.
          d_model: width; default 128 on a CPU, 512 elsewhere.
          n_layers: number of blocks; default 4 on a CPU, 8 elsewhere.
          n_heads: attention heads per block; default 4 on a CPU, 8 elsewhere.
          d_mlp: width of the MLP's hidden layer; default 4 * d_model.
          vocab_size: default the tokenizer's.
          sine_params: settings of the sine activation, named as in `psann_jax.config.SineConfig`.
          rope: True means positional_encoding="rope", False means "sinusoidal".
          positional_encoding: rope, alibi or sinusoidal.
          **options: any other setting of the base's `model` section in `psann_jax.config`. Settings of the subsections
            wave and repulsion have the prefixes wave_ and repulsion_, as in wave_interleave; those of spectral have no
            prefix: k_fft, gate_type, ...

        Raises:
          UserError: a keyword is unknown or a value is invalid.
        """
        keywords, sine_keywords = settings.model_keywords(base)
        require(
            isinstance(sine_params, Mapping | None), "sine_params", f"is {sine_params!r}, must be a dict of settings"
        )
        if rope is not None:
            require(isinstance(rope, bool), "rope", f"is {rope!r}, must be True or False")
            asked = "rope" if rope else "sinusoidal"
            require(positional_encoding in (None, asked), "rope", f"is {rope}, but positional_encoding is not {asked}")
            positional_encoding = asked
        given = {"d_model": d_model, "n_layers": n_layers, "n_heads": n_heads, "d_mlp": d_mlp, "base": base}
        given |= {"vocab_size": vocab_size, "positional_encoding": positional_encoding, **options}
        given = {**settings.default_model(given), **{n: v for n, v in given.items() if v is not None}}
        with keywords.named(), sine_keywords.named():
            model = keywords.section(given)["model"]
            sine = sine_keywords.section(sine_params or {}).get("model", {})
            # The window is chosen by `fit`; here it must not limit the model.
            shortest = {"data": {"max_length": 2}, "train": {"batch_tokens": 2}}
            self._model = parse({"model": {**model, **sine}, **shortest}).model
        self.base = base
        self.history: list[dict[str, Any]] = []
        self.summary: dict[str, Any] = {}
        self._weights: Weights | None = None
        self._workdir: str | None = None
        self._sampler: TextSampler | None = None

    @property
    def config(self) -> Config:
        """All settings of the last `fit`, or of the run that the weights were loaded from."""
        return self._trained().config

    @property
    def params(self) -> Params:
        """The weights as a nested dict of float32 numpy arrays."""
        return self._trained().params

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer that the model was trained with."""
        tokenizer = self._trained().tokenizer
        if tokenizer is None:
            raise UserError("tokenizer: the weights were loaded without one; pass tokenizer=... to psannLM.load")
        return tokenizer

    def _trained(self) -> Weights:
        if self._weights is None:
            raise UserError("psannLM: has no weights yet; call fit or load first")
        return self._weights

    # --- training -------------------------------------------------------------------------------------

    def fit(
        self,
        train_data: psannLMDataPrep,
        val_data: psannLMDataPrep | None = None,
        *,
        epochs: int | None = None,
        batch_tokens: int | None = None,
        lr: float | None = None,
        amp: Literal["bf16", "fp16", "fp32"] | None = None,
        ddp: Literal["auto", "on", "off"] = "auto",
        grad_checkpoint: bool = False,
        warmup_steps: int | None = None,
        steps_per_epoch: int | None = None,
        max_steps: int | None = None,
        workdir: str | os.PathLike[str] | None = None,
        callbacks: Sequence[Callback] = (),
        **options: Any,
    ) -> Self:
        """Trains the model from new weights, or from the current ones if it has been trained or loaded before.

        Args:
          train_data: the training text.
          val_data: validation text. If given, all of train_data is used for training. It is encoded by the tokenizer of
            train_data.
          epochs: passes over the text; default one, but at least 100 updates.
          batch_tokens: tokens per update over all devices; default 131072, on a CPU 4096, and at most an eighth of the
            text. It is rounded down to whole windows per micro-batch and device, with a note.
          lr: peak learning rate; default 3e-3 at d_model 128, proportional to 1 / sqrt(d_model).
          amp: precision of the computation; default bf16, on a CPU fp32. Weights stay float32.
          ddp: auto trains on all devices, on requires several, off requires a single one.
          grad_checkpoint: recompute every block in the backward pass to save memory; `remat` offers more choices.
          warmup_steps: default a tenth of the updates, at most 100.
          steps_per_epoch: updates that count as an epoch; default one pass over the text.
          max_steps: most updates; the exact number if `epochs` is not given.
          workdir: directory for the files of the run; default a temporary one, which stays if an error ends the
            training after a checkpoint. If it holds a run with the same settings, that run is resumed from its last
            checkpoint, and lr, warmup_steps, batch_tokens and amp default to the run's values. Weights of the model
            must be those that the run started from, or the run's own, from the last `fit` or by `load` of its last
            checkpoint.
          callbacks: objects of classes derived from `psann_jax.Callback`, called in their order by the first process.
          **options: seed, grad_accum_steps, weight_decay, grad_clip and any other setting of the config sections train
            (under the same name), eval (eval_every, ...), checkpoint (checkpoint_every, ...) and mesh (fsdp, tensor,
            sequence).

        Returns:
          The model.

        Raises:
          UserError: a keyword is unknown, a value is invalid, train_data has another tokenizer than the model, or the
            workdir holds another run or one that started from other weights.
          Exception: that of a callback; the state of the run is saved, and the model has its weights.
        """
        _require_data("train_data", train_data)
        if val_data is not None:
            _require_data("val_data", val_data)
        require(isinstance(grad_checkpoint, bool), "grad_checkpoint", f"is {grad_checkpoint!r}, must be True or False")
        _check_devices(ddp)
        has_workdir = workdir is not None or not options.get("loggers")
        require(has_workdir, "loggers", "need a workdir, in which they keep ids and, without a network, the metrics")
        hooks = Callbacks(callbacks)
        given = {**options, "batch_tokens": batch_tokens, "lr": lr, "amp": amp, "warmup_steps": warmup_steps}
        if grad_checkpoint:
            require("remat" not in options, "remat", "cannot be used together with grad_checkpoint")
            given["remat"] = "block"
        length = {"epochs": epochs, "steps_per_epoch": steps_per_epoch, "max_steps": max_steps}
        with settings.FIT.named(), settings.DATA.named(), _directory(workdir) as directory:
            data, n_windows = train_data.config, len(train_data)
            if val_data is not None:
                data = train_data.validated_by(val_data)
                n_windows = load_text(data).n_train_windows
            self._check_tokenizer(train_data.tokenizer)
            model = self._model if self._weights is None else settings.sized_as_in(directory / CONFIG, self._model)
            config = settings.fit_config(model, data, n_windows, given, length, directory / CONFIG)
            self._train(config, directory, hooks)
        hooks.raise_error()  # outside, where no keyword is looked for in its message
        return self

    def _check_tokenizer(self, tokenizer: Tokenizer) -> None:
        current = None if self._weights is None else self._weights.tokenizer
        require(
            current is None or current.fingerprint == tokenizer.fingerprint,
            "train_data",
            "has another tokenizer than the model; use psannLMDataPrep(..., tokenizer=model.tokenizer)",
        )

    def _train(self, config: Config, directory: Path, callbacks: Callbacks) -> None:
        is_own = self._workdir == os.path.realpath(directory)
        resumes = is_own and bool(CheckpointReader(directory / CHECKPOINTS).steps())
        # The run that the weights come from started from others.
        initial_params = None if self._weights is None or resumes else self._weights.params
        self.summary = train_run(config, directory, initial_params=initial_params, callbacks=callbacks)
        self.history = read_metrics(directory / METRICS)
        self._weights, self._sampler, self._workdir = read_run(directory), None, os.path.realpath(directory)
        self._model = self._weights.config.model

    # --- use ------------------------------------------------------------------------------------------

    def generate(self, prompt: str, *, max_new_tokens: int = 128, **options: Any) -> str:
        """Generates a continuation of a prompt.

        Args:
          prompt: the beginning of a text; "" generates a text from its beginning.
          max_new_tokens: most tokens to generate.
          **options: see `complete`; num_samples has no effect here and is refused.

        Returns:
          The continuation without the prompt.

        Raises:
          UserError: the model has no weights, a keyword is unknown or a value is invalid.
        """
        _require_text("prompt", prompt)
        n = options.get("num_samples")
        require(n in (None, 1), "num_samples", f"is {n}, but generate returns one text; use generate_batch")
        return self.generate_batch([prompt], max_new_tokens=max_new_tokens, **options)[0]

    def generate_batch(self, prompts: Sequence[str], *, max_new_tokens: int = 128, **options: Any) -> list[str]:
        """Generates continuations of several prompts of any lengths, the same ones as `generate` for each prompt.

        With num_samples, all those of one prompt come before those of the next.
        """
        return [done.text for done in self.complete(prompts, max_new_tokens=max_new_tokens, **options)]

    def complete(self, prompts: Sequence[str], **options: Any) -> list[Completion]:
        """Generates continuations with their token ids, log-probabilities and why they ended.

        The defaults are those of the command line.

        Args:
          prompts: texts.
          **options: fields of `psann_jax.sample.settings.Sampling`: temperature, top_k, top_p, min_p and
            repetition_penalty, where None disables the filter or penalty; fields of `GenerationOptions` in the same
            module: max_new_tokens, stop (a string or several), seed, num_samples, overflow and batch_size, where None
            is the default; and on_text, see `psann_jax.sample.text.TextSampler.complete`.

        Raises:
          UserError: the model has no weights, a keyword is unknown or a value is invalid.
        """
        require(not isinstance(prompts, str), "prompts", "is one text, must be a list; for one text use generate")
        are_several = isinstance(prompts, Iterable) and not isinstance(prompts, bytes)
        require(are_several, "prompts", f"is of type {type(prompts).__name__}, must be a list of texts")
        prompts = list(prompts)
        for i, prompt in enumerate(prompts):
            _require_text(f"prompts[{i}]", prompt)
        settings.GENERATE.section(options)
        sampling_names = [f.name for f in dataclasses.fields(Sampling)]
        sampling, rest = Sampling(), {}
        for name, value in options.items():
            if name in sampling_names:
                value = getattr(UNFILTERED, name) if value is None else value
                sampling = dataclasses.replace(sampling, **{name: value})
            elif value is not None:
                rest[name] = value
        stop, on_text = rest.pop("stop", ()), rest.pop("on_text", None)
        require(on_text is None or callable(on_text), "on_text", f"is {on_text!r}, must be a function")
        stop = (stop,) if isinstance(stop, str) else tuple(stop) if isinstance(stop, list) else stop
        generation = GenerationOptions(stop=stop, **rest)
        return list(self._text_sampler().complete(prompts, sampling, generation, on_text=on_text))

    def _text_sampler(self) -> TextSampler:
        if self._sampler is None:
            weights, tokenizer = self._trained(), self.tokenizer
            sampler = Sampler(
                weights.network(),
                weights.params,
                eos_id=tokenizer.eos_id,
                max_length=weights.config.data.max_length,
            )
            self._sampler = TextSampler(sampler, tokenizer)
        return self._sampler

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes weights, settings and tokenizer to one file.

        Args:
          path: a .safetensors file, or a directory to write model.safetensors to.

        Raises:
          UserError: the model has no weights, the path is the workdir of a run or has the suffix of another format, or
            the file cannot be written.
        """
        path, fix = given_path(path, "path"), f"name a {SUFFIX} file or another directory"
        with storage_errors(path):
            is_workdir = (path / CHECKPOINTS).is_dir()
        require(not is_workdir, "path", f"is {path}, the workdir of a run; {fix}")
        require(path.suffix not in PICKLED, "path", f"is {path}, which load reads as a file of PyTorch; {fix}")
        write_safetensors(path if path.suffix == SUFFIX else path / DEFAULT_NAME, self._trained())

    @classmethod
    def load(
        cls, path: str | os.PathLike[str], tokenizer: Tokenizer | str | os.PathLike[str] | None = None, **options: Any
    ) -> Self:
        """Loads a model written by `save`, a run, or a checkpoint of psannlm or of a Newton Gravity Transformer.

        Args:
          path: a .safetensors file, a directory with model.safetensors, the workdir of a run, or a .pt file.
          tokenizer: a tokenizer or its file, for weights without one.
          **options: `checkpoint`, a step, "best" or "last", for a workdir; for a .pt file of psannlm see
            `psann_jax.convert.psannlm.read_psannlm`.

        Raises:
          UserError: the file is missing, truncated or of another program, or the tokenizer does not fit the model.
        """
        given = tokenizer
        if given is not None and not isinstance(given, Tokenizer):
            given = Tokenizer.load(given_path(given, "tokenizer"))
        weights = read_weights(path, given, **options)
        model = cls.__new__(cls)
        model.base, model.history, model.summary, model._sampler = weights.config.model.base, [], {}, None
        model._model, model._weights, model._workdir = weights.config.model, weights, None
        location = given_location(path, "path")
        if isinstance(location, Path) and names_run(location) and not options.get("ema_params"):
            last = CheckpointReader(location / CHECKPOINTS).latest()
            if weights.training is not None and weights.training.step == last:
                model._workdir = os.path.realpath(location)
        return model


def _require_data(name: str, value: Any) -> None:
    """Raises ConfigError that says how to make a psannLMDataPrep, unless it is one."""
    shown = repr(value) if isinstance(value, str | os.PathLike) and len(str(value)) <= 80 else "..."
    fix = f"must be a psannLMDataPrep; use psannLMDataPrep({shown})"
    require(isinstance(value, psannLMDataPrep), name, f"is of type {type(value).__name__}, {fix}")


def _require_text(name: str, value: Any) -> None:
    require(isinstance(value, str), name, f"is of type {type(value).__name__}, must be a text")


def _check_devices(ddp: str) -> None:
    """Raises ConfigError if the number of devices contradicts `ddp`."""
    n = jax.device_count()
    require(ddp in ("auto", "on", "off"), "ddp", f"is {ddp!r}, must be one of auto, on, off")
    require(ddp != "on" or n > 1, "ddp", "is on, but there is only one device; use auto")
    fix = "hide the others (CUDA_VISIBLE_DEVICES=0) or use auto"
    require(ddp != "off" or n == 1, "ddp", f"is off, but there are {n} devices; {fix}")


@contextlib.contextmanager
def _directory(workdir: str | os.PathLike[str] | None) -> Iterator[Path]:
    """Yields the workdir or a temporary directory, which stays if an error ends a run that has a checkpoint."""
    if workdir is not None:
        yield given_path(workdir, "workdir")
        return
    require(jax.process_count() == 1, "workdir", "is missing; several processes need one that all of them can access")
    temporary, is_kept = Path(tempfile.mkdtemp(prefix="psann_jax-")), False
    run = temporary / "fit"
    try:
        yield run
    except BaseException:
        is_kept = bool(CheckpointReader(run / CHECKPOINTS).steps())
        if is_kept:
            settings.note(f"the files of the run stay in {run}; psannLM.load reads its last checkpoint")
        raise
    finally:
        if not is_kept:
            shutil.rmtree(temporary, ignore_errors=True)
