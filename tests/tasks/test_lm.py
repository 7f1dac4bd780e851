"""The language-modelling objective: which tokens count, what evaluation reports, what every switch changes."""

import dataclasses
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AbstractMesh, AxisType

from psann_jax.models import network as registry
from psann_jax.nn.mesh import make_mesh
from psann_jax.nn.partition import MESH_AXES
from psann_jax.nn.positions import document_reach
from psann_jax.ops import kernels
from psann_jax.ops.cross_entropy import cross_entropy
from psann_jax.tasks.lm import LanguageModel
from psann_jax.train.compilation import compile_steps
from psann_jax.train.mesh import put_batch
from psann_jax.train.step import init_state
from psann_jax.utils.errors import UserError
from tests.support.tiny import tiny_config
from tests.support.variants import variant

KEY, STEP = jax.random.key(0), jnp.int32(0)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("task")


def make(home, **overrides):
    config = tiny_config(home, **{"model__dropout": 0.0, **overrides})
    task = LanguageModel.load(config, progress=False)
    return task, task.network.init(KEY), next(task.train_batches(0))


def trained(home, steps=3, **overrides):
    """Losses of the first steps and the state after them, by the real compiled step."""
    config = tiny_config(home, **{"model__dropout": 0.0, **overrides})
    task = LanguageModel.load(config, progress=False)
    mesh = make_mesh(config.mesh)
    compiled = compile_steps(task, config, mesh)
    with jax.set_mesh(mesh):
        state = init_state(task.network, config.train, compiled.spec, config.seed)
        rows = []
        for _, batch in zip(range(steps), task.train_batches(0), strict=False):
            state, metrics = compiled.train_step(state, put_batch(batch, compiled.batch))
            rows.append({name: float(value) for name, value in metrics.items()})
    return rows, state


@pytest.fixture(scope="module")
def plain(home):
    """What comes of the settings as they are."""
    return trained(home)


@pytest.mark.parametrize("softcap", [0.0, 0.5])
def test_targets_are_the_tokens_whose_predecessor_is_of_the_same_document(home, softcap):
    task, params, _ = make(home, model__logit_softcap=softcap)
    segment_ids = jnp.array([[1, 1, 2, 2, 2, 0, 0] + [0] * 26])
    tokens = np.arange(33)[None] % 7
    batch = {"tokens": tokens, "segment_ids": segment_ids, "positions": np.array(document_reach(segment_ids))}
    assert task.weight(batch) == 3
    loss, stats = task.loss(params, batch, None, STEP)
    assert stats["weight"] == 3
    model = task.network.merge(params)
    logits = model.logits(model.hidden(tokens[:, :-1], segment_ids[:, :-1])[0])
    expected = optax.softmax_cross_entropy_with_integer_labels(logits[0, [0, 2, 3]], tokens[0, [1, 3, 4]]).sum()
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    np.testing.assert_allclose(stats["nll"], expected, rtol=1e-5)
    np.testing.assert_allclose((stats["nll_B"], stats["weight_B"]), [[expected], [3]], rtol=1e-5)
    assert set(task.loss(params, batch, KEY, STEP)[1]) == {"nll", "correct", "weight"}


def test_without_document_mask_every_token_but_the_first_counts(home):
    task, params, batch = make(home, data__document_mask=False)
    assert task.weight(batch) == 8 * 32
    changed = {**batch, "tokens": batch["tokens"].copy()}
    changed["tokens"][:, 0] = 5
    different = task.loss(params, changed, None, STEP)[0] - task.loss(params, batch, None, STEP)[0]
    assert abs(different) > 1e-4


def test_smoothing_and_z_loss_enter_the_objective_but_never_the_reported_loss(home):
    plain, params, batch = make(home)
    smoothed, _, _ = make(home, train__label_smoothing=0.1, train__z_loss=1e-2)
    expected, stats = plain.loss(params, batch, KEY, STEP)
    objective, smoothed_stats = smoothed.loss(params, batch, KEY, STEP)
    assert abs(objective - expected) > 1.0
    np.testing.assert_allclose(smoothed_stats["nll"], stats["nll"], rtol=1e-6)
    np.testing.assert_allclose(smoothed.loss(params, batch, None, STEP)[0], stats["nll"], rtol=1e-6)


def test_evaluation_reports_means_and_bits_per_byte_of_the_bytes_tokenizer(home):
    task, _, _ = make(home)
    sums = {"nll": 200.0 * math.log(2), "correct": 25.0, "weight": 100.0}
    result = task.summarise(sums)
    np.testing.assert_allclose(result["loss"], 2 * math.log(2))
    np.testing.assert_allclose(result["ppl"], 4.0)
    assert result["accuracy"] == 0.25
    n_bytes = task.data.evaluated_bytes()
    assert result["bits_per_byte"] == pytest.approx(200 / n_bytes)
    # A byte is a token; only the end of a document is a token without a byte.
    assert n_bytes < task.data.n_valid_tokens < 1.1 * n_bytes
    part, _, _ = make(home, eval__max_tokens=64)
    assert part.summarise(sums)["bits_per_byte"] == pytest.approx(200 / part.data.evaluated_bytes(64))
    assert part.data.evaluated_bytes(64) < n_bytes


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({}, None),
        (
            {"train__batch_tokens": 65536},
            r"an update of 2,048 windows is more than an epoch, the .* text has \d+;",
        ),
        ({"data__valid_fraction": 0.001}, r"the validation text has only \d+ tokens, so its loss says little;"),
        (
            {"data__max_length": 512, "data__document": "line"},
            r"documents have \d+ tokens on average and cannot see each other, while a window",
        ),
        ({"data__max_length": 512, "data__document_mask": False}, None),
        ({"data__max_length": 512, "data__pack": False}, None),
        ({"model__wave__interleave": False}, "no wave block is in the network, so it is that of base respsann; set"),
        ({"model__wave__interleave": False, "model__wave__replace": True}, None),
        ({"model__wave__interleave": False, "model__base": "respsann"}, None),
    ],
)
def test_doubtful_settings_and_texts_get_a_warning(home, overrides, message):
    size = {"train__batch_tokens": 4096} if overrides.get("data__max_length") else {}
    lines = LanguageModel.load(tiny_config(home, **{**size, **overrides}), progress=False).warnings()
    assert len(lines) == (message is not None)
    assert message is None or re.match(message, lines[0])


def test_a_vocabulary_other_than_the_tokenizers_is_refused(home):
    with pytest.raises(UserError, match=r"model\.vocab_size: is 512, but the tokenizer has 260"):
        make(home, model__vocab_size=512)


def test_a_batch_that_cannot_be_divided_over_the_devices_is_refused(home):
    task, _, _ = make(home, train__grad_accum=2)
    mesh = AbstractMesh((8, 1, 1, 1), MESH_AXES, axis_types=(AxisType.Auto,) * 4)
    with pytest.raises(UserError, match=r"train\.batch_tokens: makes micro-batches of 4 windows, .* over 8 devices"):
        compile_steps(task, task.config, mesh)


def test_accumulation_equals_the_big_batch(home, plain):
    rows, state = plain
    accumulated, other = trained(home, train__grad_accum=4)
    np.testing.assert_allclose([r["loss"] for r in accumulated], [r["loss"] for r in rows], rtol=1e-5)
    np.testing.assert_allclose([r["grad_norm"] for r in accumulated], [r["grad_norm"] for r in rows], rtol=1e-4)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4), other["params"], state["params"])


@pytest.mark.parametrize(
    "overrides",
    [
        {"train__precision": "bf16"},
        {"train__precision": "fp16"},
        {"train__optimizer": "muon"},
        {"train__optimizer": "adafactor"},
    ],
    ids=lambda o: next(iter(o.values())),
)
def test_every_precision_and_optimizer_learns(home, plain, overrides):
    rows, state = trained(home, steps=8, **overrides)
    np.testing.assert_allclose(rows[0]["loss"], plain[0][0]["loss"], rtol=5e-3)
    assert rows[-1]["loss"] < rows[0]["loss"] - 0.3
    assert rows[-1]["skipped_steps"] == 0
    assert all(p.dtype == jnp.float32 for p in jax.tree.leaves(state["params"]))


def test_fp16_overflow_halves_the_scale_and_is_no_bad_step(home, monkeypatch):
    from psann_jax.train import step

    monkeypatch.setattr(step, "_INITIAL_SCALE", 2.0**26)
    rows, _ = trained(home, steps=20, train__precision="fp16", train__lr=1e-3)
    skipped = [row["skipped_steps"] for row in rows]
    scales = [row["loss_scale"] for row in rows]
    assert skipped[0] == 1
    assert skipped[-1] < 20
    assert scales == [2.0 ** (26 - n_overflows) for n_overflows in skipped]
    assert all(row["bad_steps"] == 0 for row in rows)
    assert np.isfinite(rows[-1]["grad_norm"])


@pytest.mark.parametrize(
    "name",
    [
        "modern",
        pytest.param("waveresnet_dilated", marks=pytest.mark.slow),
        "sgrpsann",
        pytest.param("transformer", marks=pytest.mark.slow),
        pytest.param("respsann_alibi", marks=pytest.mark.slow),
    ],
)
def test_no_base_predicts_independent_random_tokens(name):
    """No causal model can go below ln V; one that sees its targets does within these steps."""
    vocab, steps = 8, 60
    network = registry.build(dataclasses.replace(variant(name), vocab_size=vocab))
    optimizer = optax.adam(1e-2)

    def train(shift):
        def loss(params, tokens):
            x, _, _ = network.merge(params).hidden(tokens[:, :-1])
            targets = tokens[:, shift : tokens.shape[1] - 1 + shift]
            total, stats = cross_entropy(x, network.merge(params).head_kernel()[0], targets, jnp.ones(targets.shape))
            return total / stats["weight"]

        def step(carry, key):
            params, state = carry
            tokens = jax.random.randint(key, (32, 17), 0, vocab)
            value, grads = jax.value_and_grad(loss)(params, tokens)
            updates, state = optimizer.update(grads, state, params)
            return (optax.apply_updates(params, updates), state), value

        params = network.init(KEY)
        keys = jax.random.split(jax.random.key(1), steps)
        return jax.jit(lambda: jax.lax.scan(step, (params, optimizer.init(params)), keys)[1])()[-10:].mean()

    assert train(shift=1) > math.log(vocab) - 0.02
    assert train(shift=0) < 0.5 * math.log(vocab)  # the same training does learn what it can see


@pytest.mark.parametrize("setting", ["auto", "plain"])
def test_the_header_names_the_attention_that_runs(setting, home, monkeypatch):
    checked = []
    monkeypatch.setattr(kernels, "platform", lambda: "gpu")
    monkeypatch.setattr(kernels, "device_kind", lambda: "NVIDIA H100 80GB HBM3")
    monkeypatch.setattr(kernels, "_is_sound", lambda *kernel: checked.append(kernel) or True)
    config = tiny_config(home, model__kernels=setting, model__d_model=32)
    task = LanguageModel.load(config, progress=False)
    with kernels.recorded() as found:
        jax.eval_shape(task.loss, task.network.abstract, task.batch_shapes(8), KEY, STEP)
    shown = task.describe()["attention"].split()[0]
    assert {shown} == found["attention"] == {"triton" if setting == "auto" else "xla"}
    assert bool(checked) == (setting == "auto")  # what is turned off is not checked either
