"""Training FLOPs against counts by hand."""

import dataclasses

import pytest

from psann_jax.config.families import families
from psann_jax.config.io import default_config, parse
from psann_jax.models.flops import (
    attended_length,
    filter_taps,
    flops_per_token,
    forward_flops_per_token,
    matmul_params,
    training_flops,
)
from psann_jax.models.network import make_network
from tests.support.variants import SIZES


def test_attention_flops_equal_those_of_a_causal_loop():
    length, d_model, n_layers = 64, 16, 3
    # Two products (scores and values) of multiply and add, for each visible key; the backward pass costs twice that.
    forward = sum(2 * 2 * d_model * (t + 0.5) for t in range(length)) * n_layers / length
    assert training_flops(0, n_layers, d_model, length) == pytest.approx(3 * forward)
    assert training_flops(1000, 0, d_model, length) == 6000


def small(base, **model):
    config = default_config(base)
    sizes = {name: size for name, size in SIZES.items() if name in config.model}
    config.model.update(**sizes | model)
    return parse(config)


@pytest.mark.parametrize("base", families())
def test_every_family_counts_its_flops(base):
    config = small(base)
    network = make_network(config)
    assert flops_per_token(config, network) > 6 * matmul_params(network)


def test_gravity_scores_are_products_of_head_coordinates():
    wide, narrow = (small("ngt", d_head_coord=size) for size in (8, 4))
    costs = [flops_per_token(config, make_network(config)) for config in (wide, narrow)]
    c = wide.model
    matrices = 6 * c.n_layers * c.d_coord * c.n_heads * 4
    scores = 6 * c.n_layers * wide.data.max_length * c.n_heads * 4 / 2
    assert costs[0] - costs[1] == pytest.approx(matrices + scores)


def test_sudoku_cells_attend_to_all_cells_in_every_iteration():
    once, twice = (small("sudoku", iterations=n) for n in (1, 2))
    costs = [flops_per_token(config, make_network(config)) for config in (once, twice)]
    assert costs[1] == 2 * costs[0]
    c, params = once.model, matmul_params(make_network(once))
    assert costs[0] == 6 * params + 2 * 6 * c.n_layers * 81 * c.d_model


def cost_of(base, **model):
    config = small(base, **model)
    return flops_per_token(config, make_network(config))


def test_a_tap_of_a_filter_costs_as_much_as_a_weight():
    """Taps of the spectral gate and of the wave, per feature and layer, forward and twice that backward."""
    c = small("sgrpsann").model
    longer = cost_of("sgrpsann", **{"spectral": {"k_fft": 64}}) - cost_of("sgrpsann", **{"spectral": {"k_fft": 16}})
    assert longer == 6 * c.n_layers * c.d_model * (64 - 16)
    for option in ("interleave", "replace"):
        five, three = (cost_of("waveresnet", wave={option: True, "kernel": kernel}) for kernel in (5, 3))
        assert five - three == 6 * c.n_layers * c.d_model * 2
    network = make_network(small("waveresnet"))
    assert filter_taps(network) == filter_taps(make_network(small("vanilla"))) == 0


def test_a_gated_mlp_has_three_matrices_and_a_tied_head_costs_as_much_as_an_untied_one():
    c = small("modern").model
    gated = cost_of("modern", mlp_activation="swiglu") - cost_of("modern", mlp_activation="silu")
    assert gated == 6 * c.n_layers * c.d_model * c.d_mlp
    assert cost_of("modern", tied_embeddings=True, logit_softcap=30.0) == cost_of("modern")


def test_a_sliding_window_counts_the_tokens_that_are_attended_to():
    length = default_config("transformer").data.max_length
    c = small("transformer").model
    projections = 6 * matmul_params(make_network(small("transformer")))
    for window in (1, 64, 1000):
        attended = sum(min(t + 0.5, window) for t in range(length)) / length
        # Two products (scores and values) of multiply and add, forward and twice that backward.
        attention = 3 * 2 * 2 * c.n_layers * c.d_model * attended
        assert cost_of("transformer", sliding_window=window) == pytest.approx(projections + attention)
    assert attended_length(c, length) == length


def test_fewer_heads_of_keys_and_values_have_smaller_projections_and_equal_scores():
    c = small("transformer").model
    saved = cost_of("transformer") - cost_of("transformer", n_kv_heads=1)
    assert saved == 6 * c.n_layers * 2 * c.d_model * (c.n_heads - 1) * (c.d_model // c.n_heads)
    assert cost_of("transformer", qk_norm=True) == cost_of("transformer")


@pytest.mark.parametrize("base", ["transformer", "sudoku"])
def test_both_gradients_of_sharpness_aware_minimisation_count(base):
    config = small(base)
    network = make_network(config)
    sharp = dataclasses.replace(config, train=dataclasses.replace(config.train, sam_rho=0.05))
    assert flops_per_token(sharp, network) == 2 * flops_per_token(config, network)


def test_recomputation_does_not_count():
    """Model FLOPs, not hardware FLOPs: what remat repeats is no progress."""
    config = small("sudoku")
    nested = dataclasses.replace(config, train=dataclasses.replace(config.train, remat="nested"))
    costs = [flops_per_token(c, make_network(c)) for c in (config, nested)]
    assert costs[0] == costs[1]


def frozen_share(config, **train):
    """The FLOPs that training saves with these settings, in matrix products with the gradients of weights."""
    changed = dataclasses.replace(config, train=dataclasses.replace(config.train, **train))
    return (flops_per_token(config, make_network(config)) - flops_per_token(changed, make_network(changed))) / 2


def test_gradients_of_frozen_weights_do_not_count():
    """Of the three products of a weight (forward, for its input, for itself), the last is not computed."""
    config, tied = small("modern"), small("modern", tied_embeddings=True)
    head = config.model.vocab_size * config.model.d_model
    blocks = matmul_params(make_network(config)) - head
    assert frozen_share(config, freeze=("matrix",)) == pytest.approx(blocks)
    assert frozen_share(config, freeze=("matrix", "head")) == pytest.approx(blocks + head)
    assert frozen_share(config, freeze=("embedding",)) == 0
    assert frozen_share(tied, freeze=("embedding",)) == pytest.approx(head)
    assert frozen_share(config, lora_rank=2) == pytest.approx(head), "adapters need the gradients of their matrices"
    sudoku = small("sudoku")
    matrices = matmul_params(make_network(sudoku))
    assert frozen_share(sudoku, freeze=("matrix",)) == pytest.approx(sudoku.model.iterations * matrices)


def test_blocks_below_which_nothing_is_trained_have_no_backward_pass():
    """Compiled programs agree: with only the head trained, XLA leaves the backward pass through the blocks out."""
    config = small("transformer")
    head = config.model.vocab_size * config.model.d_model
    attention = config.model.n_layers * config.data.max_length * config.model.d_model
    blocks = matmul_params(make_network(config)) - head
    below = ("embedding", "matrix", "bias")
    assert frozen_share(config, freeze=(*below, "norm")) == pytest.approx(2 * (blocks + attention) + head)
    assert frozen_share(config, freeze=(*below, "head")) == pytest.approx(blocks + head), "norms of blocks are trained"
    tied = small("modern", tied_embeddings=True)
    assert frozen_share(tied, freeze=("matrix", "norm")) == pytest.approx(matmul_params(make_network(tied)) - head)
    gravity = small("ngt")
    tables_left = ("matrix", "embedding", "coordinate", "gravity", "norm", "bias")
    assert frozen_share(gravity, freeze=tables_left) == pytest.approx(matmul_params(make_network(gravity)))
    sudoku = small("sudoku")
    assert frozen_share(sudoku, freeze=("embedding", "bias", "norm")) == 0


@pytest.mark.parametrize("base", families())
def test_a_forward_pass_is_a_third_of_training_with_nothing_frozen(base):
    config = small(base)
    third = flops_per_token(config, make_network(config)) / 3
    for changes in ({}, {"freeze": ("matrix", "norm")}, {"lora_rank": 2}, {"sam_rho": 0.05}):
        changed = dataclasses.replace(config, train=dataclasses.replace(config.train, **changes))
        assert forward_flops_per_token(changed, make_network(changed)) == pytest.approx(third)
