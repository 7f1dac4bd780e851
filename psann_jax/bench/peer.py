"""psannlm's PyTorch models as contenders, trained as psannlm's own trainer trains them.

Nothing here imports JAX, and torch and psannlm are imported only where they are used, so that a worker's memory is that
of its contender.
"""

import contextlib
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from typing import Any

from psann_jax.bench.timing import time_steps
from psann_jax.config import (
    Config,
    ConfigError,
    DecoderConfig,
    ModelConfig,
    SineConfig,
    TrainConfig,
    require,
    text_data,
)
from psann_jax.data.random_text import RandomText
from psann_jax.utils.extras import require_extra
from psann_jax.utils.host import peak_resident_bytes, usable_cores

_BASES = ("respsann", "sgrpsann", "transformer", "waveresnet")


def check_installed() -> None:
    """Raises UserError if psannlm or torch is not installed."""
    require_extra("--peer=psannlm", "torch", "psann", "psannlm", extra="parity")


def build_model(model: ModelConfig, attention: str = "math") -> Any:
    """Builds psannlm's torch model of the same base, sizes and options.

    Args:
      model: the `model` section, with vocab_size set.
      attention: psannlm's attn_impl, math (its default) or sdpa.

    Raises:
      ConfigError: psannlm has no such model.
    """
    config = check_model(model)
    from psannlm.lm.models.sine import SineConfig as TheirSine
    from psannlm.lm.models.transformer_respsann import ResPSANNTransformer, ResPSANNTransformerConfig
    from psannlm.lm.models.transformer_vanilla import VanillaTransformer, VanillaTransformerConfig
    from psannlm.lm.models.transformer_waveresnet import WaveResNetTransformer, WaveResNetTransformerConfig

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


def check_model(config: ModelConfig) -> DecoderConfig:
    """Returns the `model` section; raises ConfigError if psannlm has no model with these options."""
    if not isinstance(config, DecoderConfig) or config.base not in _BASES:
        raise ConfigError(f"model.base: psannlm has no {config.base}, only {', '.join(_BASES)}")
    asked, prescribed = config.resolve(), DecoderConfig(base=config.base).resolve()
    same = ("norm", "residual_alpha", "bias", "init", "tied_embeddings", "logit_softcap")
    for name in (*same, "n_kv_heads", "qk_norm", "sliding_window"):
        require(
            getattr(asked, name) == getattr(prescribed, name),
            f"model.{name}",
            f"must be {getattr(prescribed, name)!r} with --peer=psannlm, whose {config.base} has no other",
        )
    activations = ("gelu", "relu") if config.base == "transformer" else ("sine", "gelu")
    require(
        asked.mlp_activation in activations,
        "model.mlp_activation",
        f"is {asked.mlp_activation}, but psannlm's {config.base} has only {' and '.join(activations)}",
    )
    return config


def check_updates(train: TrainConfig, flag: str) -> None:
    """Raises ConfigError, which names the flag of the peer, for settings that change what is computed in an update."""
    for name in ("sam_rho", "lora_rank", "freeze", "ema_decay"):
        needed = getattr(TrainConfig(), name)
        reason = f"must be {needed} with {flag}, which trains all weights with one gradient and averages none"
        require(getattr(train, name) == needed, f"train.{name}", reason)


def differences(config: Config, *, on_gpu: bool) -> list[str]:
    """Describes the settings of the config that psannlm does not support."""
    data, train = text_data(config), config.train
    found = (
        (data.document_mask, "no document mask: tokens attend to earlier documents of their window"),
        (train.precision != "fp32" and not on_gpu, "float32 on CPU, where it has no mixed precision"),
        (train.optimizer != "adamw", f"AdamW instead of {train.optimizer}"),
        (train.weight_decay_on != "all", "weight decay on all parameters"),
        (train.z_loss > 0, "no z-loss"),
        (train.remat in ("dots", "full"), "gradient checkpointing by block"),
    )
    return [*model_differences(check_model(config.model)), *(text for holds, text in found if holds)]


def model_differences(model: DecoderConfig) -> list[str]:
    """Describes where psannlm's model of the same name differs."""
    found = (
        (model.wave.interleave or model.wave.replace, "the wave convolution is padded on both sides, not causal"),
        (model.wave.replace and not model.wave.interleave, "wave_replace leaves attention only, without a wave block"),
        (model.base == "sgrpsann", "the spectral gate is circular over the last k_fft tokens, not a causal filter"),
    )
    return [text for holds, text in found if holds]


def attentions(model: DecoderConfig) -> tuple[str, ...]:
    """Returns the attention implementations that psannlm has for such a model."""
    return ("math",) if model.positional_encoding == "alibi" else ("math", "sdpa")


class Peer:
    """psannlm's model and AdamW on the random batches of a config.

    Attributes:
      facts: n_params, attention, threads and versions.
    """

    def __init__(self, config: Config, attention: str):
        """Builds the model on the GPU if there is one, otherwise on all usable CPU cores."""
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
        self._autocast = autocast(self._device, config.train.precision)
        self._batches = RandomText(config).train_batches(seed=config.seed, batch_size=config.batch_size)
        self.facts: dict[str, Any] = {
            "n_params": sum(p.numel() for p in self._model.parameters()),
            "attention": attention,
            "threads": torch.get_num_threads(),
            "versions": {name: version(name) for name in ("torch", "psannlm")},
        }

    def run(self, n_steps: int) -> list[float]:
        """Runs training steps; returns the seconds of each. On a GPU the next one starts before the current ends."""
        return time_steps(self._step, n_steps, ahead=self._device.type == "cuda")

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

    def peak_memory_mb(self) -> float:
        """See `peak_memory_mb`."""
        return peak_memory_mb(self._device)


def autocast(device: Any, precision: str) -> Callable[[], contextlib.AbstractContextManager[None]]:
    """Returns a function that makes torch's context for `train.precision`; on a CPU all is in float32."""
    import torch

    dtypes = {"bf16": torch.bfloat16, "fp16": torch.float16}
    if device.type == "cpu" or precision == "fp32":
        return contextlib.nullcontext
    return partial(torch.amp.autocast, "cuda", dtype=dtypes[precision])


def end_of_work(device: Any) -> Callable[[], object]:
    """Returns a function that waits until a torch device has finished its queued work."""
    import torch

    if device.type == "cpu":
        return lambda: None
    event = torch.cuda.Event()
    event.record()
    return event.synchronize


def peak_memory_mb(device: Any) -> float:
    """Returns the peak memory of torch's GPU, or on a CPU of this process, in 10^6 bytes."""
    import torch

    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated()) / 1e6
    return peak_resident_bytes() / 1e6


def make(config: Config, attention: str) -> Peer:
    """Makes the contender, in its worker's process."""
    return Peer(config, attention)
