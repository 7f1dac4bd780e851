"""Random weights of every variant, and models of psannlm with its own file formats."""

from typing import Any

import jax
import numpy as np

from psann_jax.config import Config, DataConfig, TrainConfig
from psann_jax.convert.weights import Weights
from psann_jax.models.network import build
from tests.support.saved import TOKENIZER
from tests.support.variants import randomised, variant

PSANNLM_SIZES = {"vocab_size": 37, "d_model": 32, "n_layers": 2, "n_heads": 4, "d_mlp": 48}


def weights_of(name, **changes):
    """Random weights of a variant (`tests.support.variants`), with the byte tokenizer."""
    model = variant(name, vocab_size=TOKENIZER.vocab_size, **changes)
    config = Config(model=model, data=DataConfig(max_length=32), train=TrainConfig(batch_tokens=32))
    return Weights(config, jax.tree.map(np.array, randomised(build(model))), TOKENIZER)


def psannlm_model(options, seed=0):
    """A model of psannlm, of `PSANNLM_SIZES`, whose parameters all differ from their initial values."""
    import torch
    from psannlm.lm.models.registry import get_base
    from psannlm.lm.models.sine import SineConfig

    torch.manual_seed(seed)
    options: dict[str, Any] = {**PSANNLM_SIZES, **options}
    if "sine" in options:
        options["sine"] = SineConfig(**options["sine"])
    model = get_base(options.pop("base"))(**options).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def psannlm_version_012(model, *, prefix=""):
    """The content of the trainer's files of psannlm 0.12, without config and tokenizer."""
    state = {f"{prefix}{name}": value for name, value in model.state_dict().items()}
    return {
        "state": {"step": 7, "epoch": 1},
        "model": state,
        "optim": {"state": {}, "param_groups": []},
        "cfg": {"lr": 1},
    }
