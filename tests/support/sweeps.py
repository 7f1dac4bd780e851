"""A small sweep of three contenders, and results as its runs would leave them."""

from pathlib import Path

from psann_jax.config.io import default_config
from psann_jax.experiments.outcome import Outcome
from psann_jax.experiments.sweeps import sweep_config
from psann_jax.train.metrics import perplexity

CONTENDERS = {
    "transformer": {"model.base": "transformer"},
    "waveresnet": {"model.base": "waveresnet", "model.wave.interleave": True},
    "ngt": {"model.base": "ngt"},
}


def small_sweep(contenders=CONTENDERS, **options):
    """A sweep of small models on text; `options` are those of `sweep_config`."""
    common = default_config("transformer")
    common.model.update(d_model=32, n_layers=2, n_heads=4, d_mlp=256, vocab_size=500)
    common.data.max_length = 16
    common.train.update(steps=40, batch_tokens=64, warmup_steps=4, precision="fp32")
    return sweep_config(common, contenders, **{"seeds": (1, 2), **options})


def make_outcome(case, loss, losses=None, windows=None):
    """The outcome of a case with a last validation loss, and optionally with the losses by step and by window."""
    codes = [{"psann_jax": "0.1.0", "code": "aaaa", "jax": "1", "flax": "2", "optax": "3"}]
    losses = losses or {step: loss + 10 / (step + 1) for step in (0, 20)} | {40: loss}
    rows = [{"kind": "eval", "step": step, "loss": value} for step, value in losses.items()]
    summary = {"steps": 40, "val_loss": loss, "val_ppl": perplexity(loss), "val_accuracy": 0.25, "tokens_per_s": 1000.0}
    summary |= {"tokens": case.config.train.steps * case.config.train.batch_tokens, "device": "1 x CPU (test)"} | {
        "n_params": 12345,
        "peak_memory_mb": 300.0,
        "train_loss": loss - 0.1,
    }
    return Outcome(case, Path("runs", case.name), summary, rows, None, codes, windows=windows)
