"""Parameters that train.freeze keeps: no update, no state of the optimizer, no decay."""

import dataclasses

import jax
import numpy as np
import pytest
from jax.tree_util import keystr, tree_leaves_with_path, tree_map_with_path

from psann_jax.config import Config, ConfigError, DataConfig, TrainConfig
from psann_jax.models.network import make_network
from psann_jax.nn.partition import kinds_of
from tests.support.variants import quick_variants, variant
from tests.train.test_optimizers import OPTIMIZERS
from tests.train.test_step import MODEL, copied, make, random_batch

TRAIN = TrainConfig(precision="fp32", warmup_steps=0, lr=1e-2, weight_decay=0.5, weight_decay_on="all")


def infos_of(kinds, model=MODEL):
    config = Config(model=model, data=DataConfig(), train=dataclasses.replace(TRAIN, freeze=kinds))
    return make_network(config, model.vocab_size).infos


@pytest.mark.parametrize(
    "optimizer", [name if name == "adamw" else pytest.param(name, marks=pytest.mark.slow) for name in OPTIMIZERS]
)
@pytest.mark.parametrize("kinds", [("embedding",), ("matrix", "sine_frequency", "bias"), ("head", "sine")], ids=str)
def test_frozen_parameters_keep_their_values_and_have_no_state(optimizer, kinds):
    train = dataclasses.replace(TRAIN, optimizer=optimizer, freeze=kinds, ema_decay=0.9, grad_accum=2)
    step, state = make(train)
    before = copied(state["params"])
    infos = infos_of(kinds)
    names = [keystr(path) for path, _ in tree_leaves_with_path(state["opt_state"])]
    for i in range(3):
        state, _ = step(state, random_batch(i))

    def check(path, info, a, b, ema):
        is_frozen = bool(set(kinds) & set(kinds_of(path, info)))
        assert any(name.endswith(keystr(path)) for name in names) == info.trainable == (not is_frozen)
        for found in (a, ema):
            assert np.array_equal(found, b) == is_frozen, (path, kinds)

    tree_map_with_path(check, infos, state["params"], before, state["ema_params"])


@pytest.mark.parametrize(
    "changes", [{}, pytest.param({"sam_rho": 0.05, "grad_accum": 2}, marks=pytest.mark.slow)], ids=str
)
def test_the_others_are_trained_as_without(changes):
    """The gradients are those of the whole model, as are clipping by the norm of what is trained, and SAM's."""
    train = dataclasses.replace(TRAIN, grad_clip=0.0, **changes)
    results = []
    for kinds in ((), ("embedding", "sine")):
        step, state = make(dataclasses.replace(train, freeze=kinds))
        state, metrics = step(state, random_batch(0))
        results.append((copied(state["params"]), metrics))
    (whole, _), (part, metrics) = results
    if not train.sam_rho:  # whose ascent depends on the norm of all gradients
        kernels = (params["blocks"]["attn"]["q"]["kernel"] for params in (part, whole))
        np.testing.assert_allclose(*kernels, atol=1e-6)
    assert 0 < metrics["grad_norm"] <= results[0][1]["grad_norm"]


def test_the_state_is_smaller_by_the_moments():
    sizes = []
    for kinds in ((), ("embedding", "head")):
        _, state = make(dataclasses.replace(TRAIN, freeze=kinds))
        sizes.append(sum(leaf.size for leaf in jax.tree.leaves(state["opt_state"])))
    assert sizes[0] - sizes[1] == 2 * 2 * MODEL.vocab_size * MODEL.d_model


@quick_variants
def test_each_kind_of_each_model_can_be_frozen(name):
    model = variant(name)
    found = tree_leaves_with_path(infos_of((), model))
    kinds = sorted({kind for path, info in found if info.trainable for kind in kinds_of(path, info)})
    for kind in kinds:
        frozen = tree_leaves_with_path(infos_of((kind,), model))
        for (path, info), (_, before) in zip(frozen, found, strict=True):
            assert info.trainable == (before.trainable and kind not in kinds_of(path, info))
    with pytest.raises(ConfigError, match=r"^train.freeze: leaves no parameter to train; omit a kind$"):
        infos_of(tuple(kinds), model)


def test_kinds_that_do_not_exist_are_refused():
    with pytest.raises(ConfigError, match=r"^train.freeze: names gravity, but the model trains no such parameter"):
        infos_of(("gravity",))
    with pytest.raises(ConfigError, match=r"^train.freeze: 'embeding' is no kind of parameter, did you mean embedding"):
        TrainConfig(freeze=("embeding",)).check("train")


def test_a_factor_of_a_frozen_kind_is_refused():
    scales = dataclasses.replace(TRAIN.lr_scales, embedding=2.0)
    with pytest.raises(ConfigError, match=r"^train.lr_scales.embedding: has no effect"):
        make(dataclasses.replace(TRAIN, freeze=("embedding",), lr_scales=scales))


def test_the_header_counts_what_is_trained():
    config = Config(model=MODEL, data=DataConfig(), train=dataclasses.replace(TRAIN, freeze=("embedding",)))
    network = make_network(config, MODEL.vocab_size)
    n = network.n_params
    assert network.size() == f"{n:,} parameters, {n - MODEL.vocab_size * MODEL.d_model:,} trained"
