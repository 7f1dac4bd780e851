"""psannlm's PyTorch models as contenders, trained as psannlm's own trainer does.

Nothing here imports jax, and torch and psannlm are imported only where they are used, so that a worker's memory
is the contender's own.
"""

import contextlib
import os
import re
import resource
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from psann_jax.bench.laps import lap_times
from psann_jax.bench.random_text import RandomText
from psann_jax.config import Config, DecoderConfig, SineConfig, require
from psann_jax.utils.extras import require_extra

_BASES = ("transformer", "respsann", "sgrpsann", "waveresnet")


def check_installed() -> None:
    """Raises UserError if psannlm or torch are missing."""
    require_extra("--peer=psannlm", "torch", "psann", "psannlm", extra="parity")


def build_model(config: DecoderConfig, attention: str = "math") -> Any:
    """psannlm's torch model of the same base, sizes and options.

    Args:
      config: the `model` section, with vocab_size set.
      attention: its attn_impl, math (its default) or sdpa.

    Raises:
      ConfigError: psannlm has no such model.
    """
    from psannlm.lm.models.sine import SineConfig as TheirSine
    from psannlm.lm.models.transformer_respsann import ResPSANNTransformer, ResPSANNTransformerConfig
    from psannlm.lm.models.transformer_vanilla import VanillaTransformer, VanillaTransformerConfig
    from psannlm.lm.models.transformer_waveresnet import WaveResNetTransformer, WaveResNetTransformerConfig

    check_model(config)
    names = ("vocab_size", "d_model", "n_layers", "n_heads", "d_mlp", "dropout", "positional_encoding")
    common = {name: getattr(config, name) for name in names}
    common |= {"mlp_activation": config.resolve().mlp_activation, "attn_impl": attention}
    if config.base == "transformer":
        return VanillaTransformer(VanillaTransformerConfig(**common))
    common["sine"] = TheirSine(**_sine_options(config.sine))
    if config.base == "waveresnet":
        wave = {f"wave_{name}": getattr(config.wave, name) for name in ("interleave", "replace", "dropout")}
        wave |= {"wave_kernel_size": config.wave.kernel, "wave_dilation_growth": config.wave.dilation_growth}
        return WaveResNetTransformer(WaveResNetTransformerConfig(**common, **wave))
    if config.base == "sgrpsann":
        gate = {name: getattr(config.spectral, name) for name in config.spectral.__dataclass_fields__}
        return ResPSANNTransformer(ResPSANNTransformerConfig(**common, **gate, use_spectral_gate=True))
    return ResPSANNTransformer(ResPSANNTransformerConfig(**common))


def _sine_options(sine: SineConfig) -> dict[str, Any]:
    options = {name: getattr(sine, name) for name in sine.__dataclass_fields__}
    pairs = [name for name in options if name.endswith(("_range", "_bounds"))]
    return options | {name: options[name] or None for name in pairs}


def check_model(config: Any) -> None:
    """Raises ConfigError if psannlm has no model with these options."""
    names = ", ".join(_BASES)
    require(config.base in _BASES, "model.base", f"psannlm has no {config.base} to measure against, only {names}")
    asked, prescribed = config.resolve(), DecoderConfig(base=config.base).resolve()
    for name in ("norm", "residual_alpha"):
        require(
            getattr(asked, name) == getattr(prescribed, name),
            f"model.{name}",
            f"psannlm's {config.base} has {getattr(prescribed, name)!r} only; leave it out to measure against psannlm",
        )
    activations = ("gelu", "relu") if config.base == "transformer" else ("sine", "gelu")
    require(
        asked.mlp_activation in activations,
        "model.mlp_activation",
        f"is {asked.mlp_activation}, but psannlm's {config.base} has {' and '.join(activations)} only",
    )


def differences(config: Config, *, on_gpu: bool) -> list[str]:
    """What the config asks for and psannlm does not do, in words."""
    data, train = config.data, config.train
    found = (
        (data.document_mask, "no document mask: its tokens attend to the earlier documents of their window"),
        (train.precision != "fp32" and not on_gpu, "float32 on CPU, where it has no mixed precision"),
        (train.optimizer != "adamw", f"AdamW instead of {train.optimizer}"),
        (train.weight_decay_on != "all", "weight decay on all parameters"),
        (train.z_loss > 0, "no z-loss"),
        (train.remat in ("dots", "full"), "gradient checkpointing by block"),
    )
    return [*model_differences(config.model), *(text for holds, text in found if holds)]


def model_differences(model: DecoderConfig) -> list[str]:
    """What psannlm's model does otherwise, in words."""
    found = (
        (model.wave.interleave or model.wave.replace, "its wave convolution is padded on both sides, not causal"),
        (model.wave.replace and not model.wave.interleave, "with wave_replace it has attention only, no wave block"),
        (model.base == "sgrpsann", "its spectral gate is circular over the last k_fft tokens, not a causal filter"),
    )
    return [text for holds, text in found if holds]


def attentions(model: DecoderConfig) -> tuple[str, ...]:
    """Its attention implementations for such a model."""
    return ("math",) if model.positional_encoding == "alibi" else ("math", "sdpa")


class Peer:
    """psannlm's model and AdamW on the batches of a config."""

    def __init__(self, config: Config, attention: str):
        """Builds the model on the GPU if there is one, else on all usable CPU cores."""
        import torch

        self._config = config
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        torch.set_num_threads(usable_cores())
        torch.manual_seed(config.seed)
        self._model = build_model(config.model, attention).to(self._device).train()
        if config.train.remat != "none":
            self._model.enable_gradient_checkpointing(True)
        self._optimizer = torch.optim.AdamW(
            self._model.parameters(),
            lr=config.train.lr,
            betas=config.train.betas,
            eps=config.train.eps,
            weight_decay=config.train.weight_decay,
            fused=self._device.type == "cuda",
        )
        fp16 = self._device.type == "cuda" and config.train.precision == "fp16"
        self._scaler = torch.amp.GradScaler("cuda", enabled=fp16)
        self._batches = RandomText(config).train_batches(seed=config.seed, batch_size=config.batch_size)
        self.facts: dict[str, Any] = {
            "n_params": sum(p.numel() for p in self._model.parameters()),
            "attention": attention,
            "threads": torch.get_num_threads(),
            "versions": {name: version(name) for name in ("torch", "psannlm")},
        }

    def run(self, n_steps: int) -> list[float]:
        """Takes steps; seconds of each. On a GPU the next step is on its way while one is waited for."""
        return lap_times(self._step, n_steps, ahead=self._device.type == "cuda")

    def _step(self) -> Callable[[], object]:
        import torch

        train = self._config.train
        tokens = torch.from_numpy(next(self._batches)["tokens"]).long().to(self._device)
        for rows in tokens.chunk(train.grad_accum):
            with self._autocast():
                logits = self._model(rows[:, :-1])
                loss = torch.nn.functional.cross_entropy(
                    logits.reshape(-1, logits.shape[-1]), rows[:, 1:].reshape(-1), label_smoothing=train.label_smoothing
                )
            self._scaler.scale(loss / train.grad_accum).backward()
        self._scaler.unscale_(self._optimizer)
        if train.grad_clip:
            torch.nn.utils.clip_grad_norm_(self._model.parameters(), train.grad_clip)
        self._scaler.step(self._optimizer)
        self._scaler.update()
        self._optimizer.zero_grad(set_to_none=True)
        return end_of_work(self._device)

    def _autocast(self) -> Any:
        import torch

        dtypes = {"bf16": torch.bfloat16, "fp16": torch.float16}
        precision = self._config.train.precision
        if self._device.type == "cpu" or precision == "fp32":
            return contextlib.nullcontext()
        return torch.amp.autocast("cuda", dtype=dtypes[precision])

    def peak_memory_mb(self) -> float:
        """See the function of this name."""
        return peak_memory_mb(self._device)


def end_of_work(device: Any) -> Callable[[], object]:
    """A function that returns when what a torch device has been given so far is done."""
    import torch

    if device.type == "cpu":
        return lambda: None
    event = torch.cuda.Event()
    event.record()
    return event.synchronize


def peak_memory_mb(device: Any) -> float:
    """Of the memory of torch's GPU, or the peak resident set of this process, in 10^6 bytes."""
    import torch

    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated()) / 1e6
    return resident_peak_mb()


def resident_peak_mb() -> float:
    """The peak resident set of this process, in 10^6 bytes."""
    status = Path("/proc/self/status")
    match = re.search(r"VmHWM:\s+(\d+) kB", status.read_text()) if status.exists() else None
    return (int(match[1]) if match else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) * 1024 / 1e6


def usable_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def make(config: Config, attention: str) -> Peer:
    """The contender, in the process of its worker."""
    return Peer(config, attention)
