"""The three-line use, on the same core as the command line.

texts = ["the sun sings", "a wave falls", ...]
model = psannLM(base="waveresnet")
model.fit(psannLMDataPrep(texts))

Every keyword is a setting of `psann_jax.config`, and acts or raises.
"""

import contextlib
import dataclasses
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self

import jax

from psann_jax.api import keywords as settings
from psann_jax.api.data import psannLMDataPrep
from psann_jax.config import Config, require
from psann_jax.config.io import parse
from psann_jax.convert.read import read_weights
from psann_jax.convert.run import read_run
from psann_jax.convert.safetensors_file import DEFAULT_NAME, SUFFIX, write_safetensors
from psann_jax.convert.weights import Weights
from psann_jax.data.loader import load_text
from psann_jax.data.tokenizer import Tokenizer
from psann_jax.models.network import Network, Params
from psann_jax.sample.next_token import Sampling
from psann_jax.sample.sampler import Sampler
from psann_jax.sample.text import Completion, TextSampler
from psann_jax.tasks.lm import LanguageModel
from psann_jax.train.loop import train
from psann_jax.train.metrics import METRICS, read_metrics
from psann_jax.train.workdir import CONFIG
from psann_jax.utils.errors import UserError

__all__ = ["psannLM", "psannLMDataPrep"]


class psannLM:
    """A language model.

    Attributes:
      base: its name.
      history: rows of the metrics of the last `fit`, as in metrics.jsonl: kind "train" or "eval", step, loss, ppl, ...
      summary: what the last `fit` came to, as in summary.json: steps, val_loss, val_ppl, tokens_per_s, ...
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
        """Checks the settings; weights are made by `fit`.

        Args:
          base: transformer, respsann, sgrpsann, waveresnet, ngt or vanilla.
          d_model, n_layers, n_heads: sizes; None is 128, 4 and 4 on a CPU, 512, 8 and 8 elsewhere.
          d_mlp: None is 4 * d_model.
          vocab_size: None is the tokenizer's.
          sine_params: settings of the sine, by their names in `psann_jax.config.SineConfig`.
          rope: True is positional_encoding="rope", False is "sinusoidal".
          positional_encoding: rope, alibi or sinusoidal.
          **options: any other setting of the base, see `psann_jax.config.BASES`; those of its sections wave and
            repulsion begin with wave_ and repulsion_, as in wave_interleave, those of its section spectral are as they
            are: k_fft, gate_type, ...

        Raises:
          UserError: an unknown keyword or a value that cannot be used.
        """
        keywords, sine_keywords = settings.model_keywords(base)
        if rope is not None:
            asked = "rope" if rope else "sinusoidal"
            require(positional_encoding in (None, asked), "rope", f"is {rope}, but positional_encoding is not {asked}")
            positional_encoding = asked
        given = {"d_model": d_model, "n_layers": n_layers, "n_heads": n_heads, "d_mlp": d_mlp, "base": base}
        given |= {"vocab_size": vocab_size, "positional_encoding": positional_encoding, **options}
        given = {**settings.default_model(given), **{n: v for n, v in given.items() if v is not None}}
        with keywords.named(), sine_keywords.named():
            model = keywords.section(given)["model"]
            sine = sine_keywords.section(sine_params or {}).get("model", {})
            self._model = parse({"model": {**model, **sine}}).model
        self.base = base
        self.history: list[dict[str, Any]] = []
        self.summary: dict[str, Any] = {}
        self._weights: Weights | None = None
        self._sampler: TextSampler | None = None

    @property
    def config(self) -> Config:
        """All settings of the last `fit`, or of the run that the weights are from."""
        return self._trained().config

    @property
    def params(self) -> Params:
        """The weights, a nested dict of numpy arrays."""
        return self._trained().params

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer that the model was trained with."""
        tokenizer = self._trained().tokenizer
        if tokenizer is None:
            raise UserError("tokenizer: the weights came without one; give it to psannLM.load")
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
        **options: Any,
    ) -> Self:
        """Trains the model, from new weights at first and from the current ones when called again.

        Args:
          train_data: the text.
          val_data: validates instead of the part of train_data that was kept for that, which then trains too; it is
            encoded by the tokenizer of train_data.
          epochs: times that the text is seen; None is once, but at least 100 updates.
          batch_tokens: tokens of an update over all devices; None is 131072, on a CPU 4096, or an eighth of the text.
            It becomes a multiple of what windows, micro-batches and devices take, with a note.
          lr: peak learning rate; None is 3e-3 at d_model 128, falling with the root of d_model.
          amp: precision of the computation; None is bf16, on a CPU fp32. Weights stay float32.
          ddp: auto trains on all devices, on requires several, off requires a single one.
          grad_checkpoint: recomputes every block in the backward pass; `remat` chooses among more ways.
          warmup_steps: None is a tenth of the updates, at most 100.
          steps_per_epoch: updates that count as an epoch; None is what sees the text once.
          max_steps: most updates; without `epochs`, their number.
          workdir: where the run's files go. One that holds a run of the same settings goes on with that run, from its
            last checkpoint; lr, warmup_steps, batch_tokens and amp are the run's unless given. None is a temporary
            directory.
          **options: seed, grad_accum_steps, weight_decay, grad_clip and any other setting of the sections train
            (as they are called), eval (eval_every, ...), checkpoint (checkpoint_every, ...) and mesh (fsdp, tensor,
            sequence).

        Returns:
          The model.

        Raises:
          UserError: an unknown keyword, a value that cannot be used, another text's tokenizer or workdir.
        """
        require(isinstance(train_data, psannLMDataPrep), "train_data", "must be a psannLMDataPrep")
        require(val_data is None or isinstance(val_data, psannLMDataPrep), "val_data", "must be a psannLMDataPrep")
        _check_devices(ddp)
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
            config = settings.fit_config(self._model, data, n_windows, given, length, directory / CONFIG)
            self._train(config, directory)
        return self

    def _check_tokenizer(self, tokenizer: Tokenizer) -> None:
        mine = None if self._weights is None else self._weights.tokenizer
        same = mine is None or mine.fingerprint == tokenizer.fingerprint
        require(
            same,
            "train_data",
            "has another tokenizer than the model; use psannLMDataPrep(..., tokenizer=model.tokenizer)",
        )

    def _train(self, config: Config, directory: Path) -> None:
        start = None if self._weights is None else self._weights.params

        def make_task() -> LanguageModel:
            task = LanguageModel.load(config)
            if start is not None:
                names = {f.name: getattr(task.network, f.name) for f in dataclasses.fields(task.network)}
                task.network = _Started(**names, start=start)
            return task

        self.summary = train(config, make_task, directory)
        self.history = read_metrics(directory / METRICS)
        self._weights, self._sampler = read_run(directory), None
        self._model = self._weights.config.model

    # --- use ------------------------------------------------------------------------------------------

    def generate(self, prompt: str, *, max_new_tokens: int = 128, **options: Any) -> str:
        """The text that continues a prompt.

        Args:
          prompt: the beginning of a text; "" for a text from its beginning.
          max_new_tokens: at most so many.
          **options: see `complete`.

        Raises:
          UserError: there are no weights yet, an unknown keyword or a value that cannot be used.
        """
        return self.generate_batch([prompt], max_new_tokens=max_new_tokens, **options)[0]

    def generate_batch(self, prompts: Sequence[str], *, max_new_tokens: int = 128, **options: Any) -> list[str]:
        """The texts that continue several prompts, of any lengths; each is what `generate` gives for its prompt."""
        return [done.text for done in self.complete(prompts, max_new_tokens=max_new_tokens, **options)]

    def complete(self, prompts: Sequence[str], **options: Any) -> list[Completion]:
        """Continuations with their token ids, log-probabilities and why they ended.

        Args:
          prompts: texts.
          **options: of `psann_jax.sample.next_token.Sampling`, with None for none: temperature (1; 0 always takes the
            most probable token), top_k (0: all), top_p (0.9), min_p (0), repetition_penalty (1); of
            `psann_jax.sample.text.TextSampler.complete`: max_new_tokens (128), stop, seed, num_samples, batch_size,
            on_text, and overflow ("slide": past the length that it was trained with, the model goes on from the last
            half of it).

        Raises:
          UserError: there are no weights yet, an unknown keyword or a value that cannot be used.
        """
        require(not isinstance(prompts, str), "prompts", "is one text, must be a list; generate takes one")
        settings.GENERATE.section(options)
        names = [f.name for f in dataclasses.fields(Sampling)]
        chosen = {"top_p": 0.9, **{name: value for name, value in options.items() if name in names}}
        sampling = Sampling(**{name: value for name, value in chosen.items() if value is not None})
        given = {name: value for name, value in options.items() if name not in names and value is not None}
        if isinstance(given.get("stop"), str):
            given["stop"] = [given["stop"]]
        return list(self._text_sampler().complete(prompts, sampling, **{"overflow": "slide", **given}))

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
          path: of a .safetensors file, or of a directory, which gets a model.safetensors.

        Raises:
          UserError: there are no weights yet, or the file cannot be written.
        """
        path = Path(path)
        write_safetensors(path if path.suffix == SUFFIX else path / DEFAULT_NAME, self._trained())

    @classmethod
    def load(
        cls, path: str | os.PathLike[str], tokenizer: Tokenizer | str | os.PathLike[str] | None = None, **options: Any
    ) -> Self:
        """A model from what `save` has written, a run's workdir or a checkpoint of psannlm.

        Args:
          path: a .safetensors file, a directory with model.safetensors, a workdir, or a .pt file of psannlm.
          tokenizer: a tokenizer or its file, for weights that come without one.
          **options: for a .pt file, see `psann_jax.convert.psannlm.read_psannlm`.

        Raises:
          UserError: there is no such file, it is truncated or foreign, or the tokenizer does not fit it.
        """
        given = tokenizer if tokenizer is None or isinstance(tokenizer, Tokenizer) else Tokenizer.load(tokenizer)
        weights = read_weights(path, given, **options)
        model = cls.__new__(cls)
        model.base, model.history, model.summary, model._sampler = weights.config.model.base, [], {}, None
        model._model, model._weights = weights.config.model, weights
        return model


@dataclasses.dataclass(frozen=True)
class _Started(Network):
    """A network that begins from given parameters."""

    start: Params

    def init(self, key: jax.Array) -> Params:
        """The given parameters; a callback, since constants of their size would be compiled into the program."""
        del key
        params: Params = jax.pure_callback(lambda: self.start, self.abstract)
        return params


def _check_devices(ddp: str) -> None:
    """Raises ConfigError if the devices are not as `ddp` says."""
    n = jax.device_count()
    require(ddp in ("auto", "on", "off"), "ddp", f"is {ddp!r}, must be one of auto, on, off")
    require(ddp != "on" or n > 1, "ddp", "is on, but there is one device only; leave it at auto")
    hidden = "hide the others (CUDA_VISIBLE_DEVICES=0) or leave it at auto"
    require(ddp != "off" or n == 1, "ddp", f"is off, but there are {n} devices; {hidden}")


@contextlib.contextmanager
def _directory(workdir: str | os.PathLike[str] | None) -> Iterator[Path]:
    """The workdir, or a temporary one for as long as the context lasts."""
    if workdir is not None:
        yield Path(workdir)
        return
    require(jax.process_count() == 1, "workdir", "is missing; several processes need one that all of them see")
    with tempfile.TemporaryDirectory(prefix="psann_jax-") as temporary:
        yield Path(temporary) / "fit"
