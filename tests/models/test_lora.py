"""Low-rank adapters: their mathematics, what is trained, and runs that have them."""

import dataclasses
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from psann_jax.config import Config, ConfigError, DataConfig, TrainConfig
from psann_jax.convert.read import read_weights
from psann_jax.convert.start import open_start
from psann_jax.models.lora import LORA
from psann_jax.models.network import make_network
from psann_jax.runs.evaluate import evaluate, validation_text
from psann_jax.runs.restore import load_text_run
from psann_jax.runs.training import train_run
from psann_jax.train.metrics import read_metrics
from tests.support.tiny import tiny_config
from tests.support.variants import quick_variants, variant
from tests.train.test_step import MODEL, copied, make, random_batch

TRAIN = TrainConfig(precision="fp32", warmup_steps=0, lr=1e-2, lora_rank=3, lora_alpha=6.0)
TOKENS = jnp.arange(12).reshape(2, 6) % 5


def network_of(model=MODEL, train=TRAIN):
    return make_network(Config(model=model, data=DataConfig(), train=train), model.vocab_size)


def randomised(params):
    keys = iter(jax.random.split(jax.random.key(1), 1000))
    return jax.tree.map(lambda p: p + 0.1 * jax.random.normal(next(keys), p.shape), params)


def logits(network, params):
    return network.merge(params)(TOKENS)


@quick_variants
def test_new_adapters_change_nothing_and_merged_ones_are_a_plain_model(name):
    model = variant(name)
    adapted, plain = network_of(model), network_of(model, TrainConfig(precision="fp32"))
    weights = randomised(plain.init(jax.random.key(0)))
    params = adapted.lora.with_initial(weights, jax.random.key(0))
    jax.tree.map(np.testing.assert_array_equal, adapted.lora.merge(params), weights)
    params = {**params, LORA: randomised(params[LORA])}
    merged = adapted.lora.merge(params)
    assert jax.tree.structure(merged) == jax.tree.structure(plain.abstract)
    q, pair = weights["blocks"]["attn"]["o"]["kernel"], params[LORA]["blocks"]["attn"]["o"]["kernel"]
    expected = q + 2.0 * np.einsum("lir,lro->lio", pair["a"], pair["b"])
    np.testing.assert_allclose(merged["blocks"]["attn"]["o"]["kernel"], expected, atol=1e-5)
    changed = jax.tree.map(lambda i, a, b: np.any(a != b) == (i.kind == "matrix"), plain.infos, merged, weights)
    assert all(jax.tree.leaves(changed))


def test_logits_and_gradients_are_those_of_the_merged_weights():
    adapted, plain = network_of(), network_of(train=TrainConfig(precision="fp32"))
    params = randomised(adapted.init(jax.random.key(0)))
    merged = adapted.lora.merge(params)
    np.testing.assert_array_equal(logits(adapted, params), logits(plain, merged))
    grads = jax.grad(lambda p: jnp.sum(jnp.sin(logits(adapted, p))))(params)[LORA]
    whole = jax.grad(lambda p: jnp.sum(jnp.sin(logits(plain, p))))(merged)

    def check(info, grad, weight_grad, pair):
        if info.kind == "matrix":
            a, b = np.swapaxes(pair["a"], -1, -2), np.swapaxes(pair["b"], -1, -2)
            np.testing.assert_allclose(grad["a"], 2.0 * weight_grad @ b, rtol=1e-4, atol=1e-4)
            np.testing.assert_allclose(grad["b"], 2.0 * a @ weight_grad, rtol=1e-4, atol=1e-4)

    for layer in ("attn", "mlp"):
        infos = plain.infos["blocks"][layer]
        for name in grads["blocks"][layer]:
            given = (grads, whole, params[LORA])
            check(infos[name]["kernel"], *(tree["blocks"][layer][name]["kernel"] for tree in given))


@pytest.mark.parametrize(
    "changes",
    [{}, {"grad_accum": 2, "ema_decay": 0.9}, pytest.param({"sam_rho": 0.05}, marks=pytest.mark.slow)],
    ids=str,
)
def test_only_adapters_are_trained(changes):
    step, state = make(dataclasses.replace(TRAIN, weight_decay=0.1, weight_decay_on="all", **changes))
    before, losses = copied(state["params"]), []
    for _ in range(6):
        state, metrics = step(state, random_batch(0))
        losses.append(float(metrics["loss"]))
    assert losses[-1] < losses[0]
    for params in (state["params"], state.get("ema_params", state["params"])):
        weights = {name: value for name, value in params.items() if name != LORA}
        jax.tree.map(np.testing.assert_array_equal, weights, {name: before[name] for name in weights})
        assert all(np.any(a != b) for a, b in zip(*map(jax.tree.leaves, (params[LORA], before[LORA])), strict=True))
    moments = sum(leaf.size for leaf in jax.tree.leaves(state["opt_state"]) if leaf.ndim)
    assert moments == 2 * sum(leaf.size for leaf in jax.tree.leaves(before[LORA]))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"freeze": ("head",)}, r"^train.freeze: has no effect with train.lora_rank, which trains adapters only"),
        ({"optimizer": "muon"}, r"^train.optimizer: cannot be muon with train.lora_rank"),
        ({"lora_alpha": 0.0}, r"^train.lora_alpha: is 0.0, must be positive"),
        ({"lora_rank": -1}, r"^train.lora_rank: is -1, must be at least 0"),
        ({"lora_rank": 0}, r"^train.lora_alpha: has no effect without train.lora_rank"),
    ],
)
def test_settings_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(TRAIN, **changes).check("train")


@pytest.mark.slow
def test_a_run_with_adapters_is_used_without_them_and_resumes_exactly(tmp_path):
    short = {"train__steps": 4, "checkpoint__every": 2, "eval__every": 2}
    train_run(tiny_config(tmp_path, **short), tmp_path / "source")
    adapters = {"train__lora_rank": 2, "train__init_from": str(tmp_path / "source")}
    config = tiny_config(tmp_path, **short, **adapters)
    train_run(config, tmp_path / "run", open_start=open_start)
    rows = read_metrics(tmp_path / "run" / "metrics.jsonl")
    last_of_source = [row for row in read_metrics(tmp_path / "source" / "metrics.jsonl") if row["kind"] == "eval"][-1]
    assert rows[0]["loss"] == pytest.approx(last_of_source["loss"], rel=1e-6)
    run, source = load_text_run(tmp_path / "run"), load_text_run(tmp_path / "source")
    assert run.config.train.lora_rank == 0
    np.testing.assert_array_equal(run.params["embed"], source.params["embed"])
    assert evaluate(run, validation_text(run)).results["loss"] == pytest.approx(
        [row for row in rows if row["kind"] == "eval"][-1]["loss"], rel=1e-5
    )
    assert LORA not in read_weights(tmp_path / "run").params
    further = tiny_config(tmp_path, train__init_from=str(tmp_path / "run"))
    assert jax.tree.structure(open_start(further).network.abstract) == jax.tree.structure(source.params)
    shutil.copytree(tmp_path / "run", tmp_path / "stopped")
    shutil.rmtree(tmp_path / "stopped" / "checkpoints" / "step_4")
    (tmp_path / "stopped" / "summary.json").unlink()
    train_run(config, tmp_path / "stopped", open_start=open_start)
    again = read_metrics(tmp_path / "stopped" / "metrics.jsonl")
    assert [(row["step"], row["loss"]) for row in again] == [(row["step"], row["loss"]) for row in rows]
