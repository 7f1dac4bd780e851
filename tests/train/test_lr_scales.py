"""Factors of the learning rate by kind of parameter, and the recipe of Muon that needs them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.shared import modern_muon
from psann_jax.config import ConfigError, LrScales, TrainConfig
from psann_jax.config.files import apply_overrides
from psann_jax.config.io import default_config, parse
from psann_jax.models.network import build
from psann_jax.nn.partition import ParamInfo
from psann_jax.tasks.lm import LanguageModel
from psann_jax.train import loop
from psann_jax.train.optimizers import lr_factors, make_optimizer
from tests.support.tiny import tiny_config
from tests.support.variants import VARIANTS, variant
from tests.train.test_optimizers import OPTIMIZERS, random_tree, run
from tests.train.test_step import copied, make, random_batch

SINE = ("amplitude", "frequency", "decay")
INFOS = {
    "blocks": {
        "kernel": ParamInfo("matrix", ("layers", "embed", "mlp")),
        "act": {name: ParamInfo("sine", ("layers", "mlp")) for name in SINE},
        "norm": ParamInfo("norm", ("layers", "embed")),
    },
    "embed": ParamInfo("embedding", ("vocab", "embed")),
    "head": ParamInfo("embedding", ("embed", "vocab")),
}
SHAPES = {
    "blocks": {"kernel": (3, 8, 12), "act": dict.fromkeys(SINE, (3, 12)), "norm": (3, 8)},
    "embed": (20, 8),
    "head": (8, 20),
}
SCALES = LrScales(matrix=0.5, embedding=3.0, head=0.25, norm=0.0, sine=10.0, sine_frequency=0.5)
FACTORS = {
    "blocks": {"kernel": 0.5, "act": {"amplitude": 10.0, "frequency": 5.0, "decay": 10.0}, "norm": 0.0},
    "embed": 3.0,
    "head": 0.25,
}


def factors_of(scales, infos):
    return lr_factors(TrainConfig(lr_scales=scales), infos, 8)


def test_factors_of_kinds():
    assert factors_of(SCALES, INFOS) == FACTORS


@pytest.mark.parametrize("optimizer", ["adamw", "adafactor"])
def test_matrices_and_head_get_rates_by_width(optimizer):
    """Yang et al. (2022), table 3: the rates of hidden and output weights fall as 1 / fan_in, the others stay."""
    config = TrainConfig(optimizer=optimizer, lr_base_width=2, lr_scales=LrScales(matrix=3.0))
    expected = jax.tree.map(lambda _: 1.0, FACTORS) | {"head": 0.25}
    expected["blocks"]["kernel"] = 0.75
    assert lr_factors(config, INFOS, 8) == expected
    assert set(jax.tree.leaves(lr_factors(TrainConfig(lr_base_width=8), INFOS, 8))) == {1.0}
    params, grads = random_tree(0, SHAPES), random_tree(1, SHAPES)
    updates = [
        make_optimizer(c, INFOS, 0.1, 8).update(grads, make_optimizer(c, INFOS, 0.1, 8).init(params), params)[0]
        for c in (TrainConfig(optimizer=optimizer), config)
    ]
    jax.tree.map(lambda f, a, b: np.testing.assert_allclose(f * a, b, rtol=1e-6), expected, *updates)


def test_rates_by_width_are_refused_with_muon():
    with pytest.raises(ConfigError, match=r"train\.lr_base_width: has no effect with optimizer muon"):
        TrainConfig(optimizer="muon", lr_base_width=64).check("train")


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("decay_on", ["matrices", "all"])
def test_a_parameter_changes_as_with_its_own_rate(optimizer, decay_on):
    """With weight decay, which the factor multiplies too; over several steps, so that no state depends on it."""
    config = TrainConfig(optimizer=optimizer, weight_decay=0.3, weight_decay_on=decay_on)
    params, grads = random_tree(0, SHAPES), [random_tree(i, SHAPES) for i in (1, 2, 3)]
    rates = [0.1, 0.2, 0.05]
    scaled = run(dataclasses.replace(config, lr_scales=SCALES), INFOS, params, grads, rates)
    for factor in set(jax.tree.leaves(FACTORS)):
        alone = run(config, INFOS, params, grads, [factor * rate for rate in rates])
        for f, a, e in zip(*map(jax.tree.leaves, (FACTORS, scaled, alone)), strict=True):
            if f == factor:
                np.testing.assert_allclose(a, e, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_factor_changes_neither_the_state_nor_other_parameters(optimizer):
    plain, config = TrainConfig(optimizer=optimizer), TrainConfig(optimizer=optimizer, lr_scales=LrScales(head=0.25))
    params, grads = random_tree(0, SHAPES), [random_tree(1, SHAPES)]
    before, after = (run(c, INFOS, params, grads, [0.1]) for c in (plain, config))
    assert np.all(before.pop("head") != after.pop("head"))
    jax.tree.map(np.testing.assert_array_equal, before, after)
    states = [make_optimizer(c, INFOS, 0.0).init(params) for c in (plain, config)]
    assert jax.tree.structure(states[0]) == jax.tree.structure(states[1]), "checkpoints of both have the same arrays"


@pytest.mark.parametrize(
    "change", [{"grad_accum": 2, "ema_decay": 0.5}, pytest.param({"sam_rho": 0.1}, marks=pytest.mark.slow)], ids=str
)
def test_updates_of_a_training_step_are_scaled(change):
    train = TrainConfig(precision="fp32", warmup_steps=0, lr=1e-3, weight_decay=0.1, weight_decay_on="all", **change)
    batch, changes = random_batch(1), []
    for scales in (LrScales(), LrScales(sine=10.0, head=0.5)):
        step, state = make(dataclasses.replace(train, lr_scales=scales))
        before = copied(state["params"])
        state, metrics = step(state, batch)
        assert metrics["lr"] == pytest.approx(1e-3, rel=1e-4)
        changes.append(jax.tree.map(lambda a, b: np.asarray(a) - b, state["params"], before))
        if train.ema_decay:
            mean = jax.tree.map(lambda a, b: (np.asarray(a) + b) / 2, state["params"], before)
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-7), state["ema_params"], mean)
    for plain, scaled, factor in (
        *((*(c["blocks"]["mlp"]["act"][name] for c in changes), 10.0) for name in SINE),
        (*(c["head"] for c in changes), 0.5),
        (*(c["embed"] for c in changes), 1.0),
    ):
        np.testing.assert_allclose(scaled, factor * plain, rtol=1e-2, atol=2e-6)


@pytest.mark.slow
def test_a_run_with_factors_resumes_exactly(tmp_path, monkeypatch):
    """Muon uses AdamW for all but matrices, so both are tested."""
    config = tiny_config(tmp_path, train__optimizer="muon", train__lr_scales__sine=10.0, train__lr_scales__conv=0.1)
    task = LanguageModel.load(config, progress=False)
    compiled = loop.compile_steps(task, config, loop.make_mesh(config.mesh))
    monkeypatch.setattr(loop, "compile_steps", lambda *_: compiled)
    whole = loop.train(config, lambda: task, tmp_path / "whole")
    monkeypatch.setattr(loop.StopSignals, "should_stop", lambda self, now: now == 3)
    assert loop.train(config, lambda: task, tmp_path / "run")["stopped"]
    monkeypatch.setattr(loop.StopSignals, "should_stop", lambda self, now: False)
    resumed = loop.train(config, lambda: task, tmp_path / "run")
    assert (resumed["train_loss"], resumed["val_loss"]) == (whole["train_loss"], whole["val_loss"])


@pytest.mark.parametrize("name", VARIANTS)
def test_every_kind_has_a_factor(name):
    infos = jax.tree.leaves(build(variant(name)).infos)
    assert {info.kind for info in infos} <= {f.name for f in dataclasses.fields(LrScales)}


def test_the_head_of_every_kind_of_model_is_told_from_its_embedding():
    scales = LrScales(head=2.0)
    for name in ("transformer", "waveresnet"):
        factors = factors_of(scales, build(variant(name)).infos)
        assert (factors["head"], factors["embed"], factors["norm"]["scale"]) == (2.0, 1.0, 1.0)
    with pytest.raises(ConfigError, match=r"train\.lr_scales\.head: has no effect: the model trains no such parameter"):
        factors_of(scales, build(variant("vanilla")).infos)


@pytest.mark.parametrize(
    ("name", "scale"), [("transformer", "sine"), ("transformer", "gravity"), ("respsann_no_decay", "sine_decay")]
)
def test_kinds_that_a_model_lacks_are_refused(name, scale):
    with pytest.raises(ConfigError, match=rf"train\.lr_scales\.{scale}: has no effect"):
        factors_of(LrScales(**{scale: 2.0}), build(variant(name)).infos)


def test_kinds_that_are_frozen_are_refused():
    infos = {**INFOS, "blocks": {**INFOS["blocks"], "act": {"amplitude": ParamInfo("sine", ("mlp",), trainable=False)}}}
    with pytest.raises(ConfigError, match=r"train\.lr_scales\.sine: has no effect"):
        factors_of(LrScales(sine=2.0), infos)


def test_factors_are_settings():
    config = default_config("respsann")
    apply_overrides(config, ["train.lr_scales.sine=10", "train.lr_scales.sine_decay=0"])
    assert parse(config).train.lr_scales == LrScales(sine=10.0, sine_decay=0.0)
    with pytest.raises(ConfigError, match=r"train\.lr_scales\.sinus: unknown key, did you mean train\.lr_scales\.sine"):
        apply_overrides(config, ["train.lr_scales.sinus=10"])
    apply_overrides(config, ["train.lr_scales.norm=-1"])
    with pytest.raises(ConfigError, match=r"train\.lr_scales\.norm: is -1\.0, must be at least 0"):
        parse(config)


# --- Muon -----------------------------------------------------------------------------------------------


def numpy_muon(grads, beta, rate):
    """Jordan (2024): Nesterov momentum, five Newton-Schulz iterations; in float64, with the sizes of Liu et al. (2025).

    Momentum is a moving average whose bias is corrected, which the iterations' normalisation makes immaterial but for
    the weight of the newest gradient in the first updates (Dozat, 2016).
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    change, m = 0.0, 0.0
    for t, g in enumerate(np.asarray(grads, np.float64), 1):
        m = beta * m + (1 - beta) * g
        u = beta * m / (1 - beta ** (t + 1)) + (1 - beta) * g / (1 - beta**t)
        x = u / np.linalg.norm(u)
        x = x.T if x.shape[0] > x.shape[1] else x
        for _ in range(5):
            s = x @ x.T
            x = a * x + (b * s + c * s @ s) @ x
        x = x.T if u.shape[0] > u.shape[1] else x
        change = change - rate * 0.2 * np.sqrt(max(u.shape)) * x
    return change


@pytest.mark.parametrize("beta", [0.0, 0.8, 0.95])
@pytest.mark.parametrize("shape", [(8, 12), (12, 8), (16, 16)])
def test_muon_is_muon(beta, shape):
    config = TrainConfig(optimizer="muon", muon_momentum=beta, weight_decay=0.0)
    grads = [random_tree(i, {"w": shape}) for i in range(1, 7)]
    params = {"w": jnp.zeros(shape)}
    after = run(config, {"w": ParamInfo("matrix", ("embed", "mlp"))}, params, grads, [0.1] * 6)["w"]
    np.testing.assert_allclose(after, numpy_muon([g["w"] for g in grads], beta, 0.1), rtol=1e-3, atol=1e-4)


def test_the_momentum_of_muon_is_refused_with_other_optimizers():
    for optimizer in ("adamw", "adafactor"):
        with pytest.raises(ConfigError, match=rf"train\.muon_momentum: has no effect with optimizer {optimizer}"):
            TrainConfig(optimizer=optimizer, muon_momentum=0.9).check("train")
    with pytest.raises(ConfigError, match=r"train\.muon_momentum: is 1\.0, must be at least 0 and below 1"):
        TrainConfig(optimizer="muon", muon_momentum=1.0).check("train")


def test_the_recipe_of_muon_is_a_valid_experiment():
    config = parse(modern_muon(default_config("transformer")))
    assert (config.train.optimizer, config.train.muon_momentum) == ("muon", 0.95)
    factors = lr_factors(config.train, build(variant("transformer")).infos, 16)
    assert (factors["embed"], factors["head"], factors["norm"]["scale"]) == (10.0, 10.0, 1.0)
