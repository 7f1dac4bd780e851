"""Import of the Newton Gravity Transformer's checkpoints: logits of the original, and rejected files."""

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the parity extra: pip install 'psann_jax[parity]'")

import torch

from psann_jax.convert.read import read_weights
from psann_jax.utils.errors import UserError

GOLDEN = Path(__file__).parent.parent / "golden"
SIZES = {"vocab_size": 53, "hidden_dim": 32, "num_layers": 2, "num_heads": 4, "mlp_dim": 40, "max_seq_len": 29}
NGT = SIZES | {"coord_dim": 12, "dropout": 0.1, "use_rsqrt": True}


def saved(path, name, config, change=lambda state: None):
    """Writes a checkpoint as the original's trainer does, with the weights of a golden file."""
    arrays = np.load(GOLDEN / f"ngt_{name}.npz")
    state = {k.removeprefix("param/"): torch.tensor(arrays[k]) for k in arrays.files if k.startswith("param/")}
    state["head.weight"] = state["token_emb.weight"]
    change(state)
    torch.save({"model_state": state, "config": config, "iter": 3, "best_val": 1.0}, path)
    return path, arrays


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("massscore_hard", NGT),
        ("massvalue_soft", NGT | {"mass_in_value": True, "use_soft_cutoff": True}),
        ("massscore_none", NGT | {"use_radius_cutoff": False}),
        ("vanilla", SIZES),
    ],
)
def test_an_imported_model_has_the_originals_logits(name, config, tmp_path):
    path, arrays = saved(tmp_path / "model.pt", name, config)
    weights = read_weights(path)
    model = weights.network().merge(weights.params)
    tokens = arrays["tokens"][:, :-1]
    logits = model.logits(model.hidden(tokens)[0])
    np.testing.assert_allclose(logits, arrays["logits"], rtol=1e-4, atol=1e-4 * np.abs(arrays["logits"]).max())


@pytest.mark.parametrize(
    ("config", "change", "message"),
    [
        (NGT | {"coord_dim": 16}, lambda state: None, r"coords.*12.*16|coords.*16.*12"),
        (
            NGT | {"use_radius_cutoff": False, "use_soft_cutoff": True},
            lambda state: None,
            "soft cutoff without a radius",
        ),
        (
            NGT,
            lambda state: state.update({"layers.0.attn.other": torch.ones(1)}),
            "'layers.0.attn.other' has no counter",
        ),
        (NGT, lambda state: state.pop("layers.1.norm1.bias"), "n_layers|norm1"),
        (NGT | {"num_heads": 5}, lambda state: None, "must be divisible"),
        ({"lr": 1}, lambda state: None, "is not a checkpoint of a Newton Gravity Transformer"),
        (
            NGT,
            lambda state: state.update({"layers.0.attn.coord_proj_next.weight": torch.ones(12, 12)}),
            "is of version 0.1",
        ),
    ],
)
def test_an_unsupported_checkpoint_is_rejected(config, change, message, tmp_path):
    path, _ = saved(tmp_path / "model.pt", "massscore_hard", config, change)
    with pytest.raises(UserError, match=message) as error:
        read_weights(path)
    assert "\n" not in str(error.value)
