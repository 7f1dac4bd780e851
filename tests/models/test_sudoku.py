"""The iterative transformer: values and gradients of the original, and what no switch may change."""

import math
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from psann_jax.config import Config, ConfigError, PuzzlesConfig, SineConfig, SudokuConfig, TrainConfig
from psann_jax.models import network as network_module
from psann_jax.models import network as registry
from psann_jax.models.sudoku import Sudoku, empty_cell_sums, filled
from psann_jax.nn.mesh import make_mesh
from psann_jax.tasks.sudoku import SudokuTask
from psann_jax.train.mesh import batch_sharding
from psann_jax.train.optimizers import ascend
from psann_jax.train.schedules import learning_rate
from psann_jax.train.step import init_state, make_train_step, state_spec
from tests.support.sudoku_names import entries, params_of

GOLDEN = Path(__file__).parent.parent / "golden"
RTOL = 1e-6  # the originals form their rotary tables in float32


def load(variant):
    """The golden arrays of a variant, its network in float64 and its parameters."""
    arrays = dict(np.load(GOLDEN / f"sudoku_{variant}.npz"))
    config = SudokuConfig(positional_encoding=variant)
    network = registry.build(config, dtype=jnp.float64)
    params = params_of(network, entries(arrays, "param/"))
    return arrays, network, params


def mean_loss(network, params, puzzles, solutions, key=None):
    """The loss of training: mean cross entropy over the empty cells and the iterations; and all logits."""
    out = network.merge(params).run(
        puzzles, lambda logits: (empty_cell_sums(logits, puzzles, solutions)["nll"], logits), dropout_key=key
    )
    return out[0].mean() / (puzzles == 0).sum(), out[1]


def close(actual, expected, rtol=RTOL):
    # The gradient of the bias of the keys is 0 but for rounding.
    np.testing.assert_allclose(actual, expected, rtol=rtol, atol=max(rtol * np.abs(expected).max(), 1e-15))


@pytest.mark.parametrize(
    ("variant", "n_params"), [("additive", 800_393), pytest.param("rope2d", 796_937, marks=pytest.mark.slow)]
)
def test_all_iterations_the_loss_and_gradients_equal_the_original(variant, n_params, x64):
    arrays, network, params = load(variant)
    assert network.n_params == arrays["n_params"] == n_params
    puzzles, solutions = jnp.asarray(arrays["puzzle"]), jnp.asarray(arrays["solution"])
    step = jax.jit(jax.value_and_grad(partial(mean_loss, network), has_aux=True))
    (loss, logits), grads = step(params, puzzles, solutions)
    assert logits.shape == (16, 4, 81, 9)
    close(logits, arrays["logits_all"])
    close(loss, arrays["loss"])
    compared = 0
    for path, layer, expected in entries(arrays, "grad/"):
        got = grads
        for name in path:
            got = got[name]
        close(got if layer is None else got[layer], expected)
        compared += 1
    assert compared >= 10


@pytest.mark.parametrize(
    ("variant", "lr", "steps", "warmup"), [("additive", 1.5e-3, 70_000, 2000), ("rope2d", 2e-3, 50_000, 1400)]
)
def test_learning_rates_equal_the_original(variant, lr, steps, warmup):
    """The original repeats the peak in the update after the warm-up; from then on ours is one update ahead."""
    arrays = np.load(GOLDEN / f"sudoku_{variant}.npz")
    config = TrainConfig(lr=lr, steps=steps, warmup_steps=warmup, end_lr_ratio=0.01)
    for step, expected in zip(arrays["lr_steps"].tolist(), arrays["lr"].tolist(), strict=True):
        np.testing.assert_allclose(learning_rate(step - (step >= warmup), config), expected, rtol=1e-5)


@pytest.mark.slow
def test_a_step_of_sam_equals_the_original(x64, monkeypatch):
    """Through the training step, with dropout off as in the golden arrays."""
    monkeypatch.setitem(network_module.DTYPES, "fp32", jnp.float64)
    arrays, _, params = load("additive")
    train = TrainConfig(
        steps=10, lr=1.5e-3, schedule="constant", end_lr_ratio=0.1, warmup_steps=0, weight_decay_on="all",
        grad_clip=0.0, sam_rho=0.05, precision="fp32",
    )  # fmt: skip
    config = Config(model=SudokuConfig(dropout=0.0), data=PuzzlesConfig(), train=train)
    task, mesh = SudokuTask(config, None), make_mesh(config.mesh)
    spec = state_spec(task.network, train, mesh)
    state = init_state(task.network, train, spec, 0)
    wide = partial(jax.tree.map, lambda a: a.astype(jnp.float64) if a.dtype == jnp.float32 else a)
    state = wide(state) | {"params": jax.tree.map(jnp.asarray, params)}
    batch = {"puzzles": arrays["puzzle"], "solutions": arrays["solution"], "buckets": np.zeros(4, np.int32)}
    batch = {name: jnp.asarray(x) for name, x in batch.items()}
    end, metrics = make_train_step(task, train, spec, batch_sharding(mesh), 0)(state, batch)
    close(metrics["loss"], arrays["loss"])
    compared = 0
    for path, layer, expected in entries(arrays, "sam_end/"):
        got = end["params"]
        for name in path:
            got = got[name]
        close(got if layer is None else got[layer], expected, rtol=1e-5)
        compared += 1
    assert compared >= 10

    grads = jax.grad(partial(mean_loss, task.network), has_aux=True)(params, batch["puzzles"], batch["solutions"])[0]
    uphill = ascend(params, grads, 0.05, task.network.infos)
    loss, _ = mean_loss(task.network, uphill, batch["puzzles"], batch["solutions"])
    close(loss, arrays["sam_perturbed_loss"])


# --- what must hold for every option ----------------------------------------------------------------------

SMALL = {"d_model": 16, "n_layers": 2, "n_heads": 2, "d_mlp": 24, "iterations": 3}


def puzzle_batch(n, seed=0):
    """Random digits with holes: no grid need be valid here."""
    rng = np.random.default_rng(seed)
    solutions = rng.integers(1, 10, (n, 81)).astype(np.uint8)
    return np.where(rng.random((n, 81)) < 0.6, 0, solutions).astype(np.uint8), solutions


def value_and_gradients(remat, scan_layers=True, key=None, **options):
    config = SudokuConfig(**{**SMALL, **options})
    network = registry.build(config, dtype=jnp.float64, remat=remat, scan_layers=scan_layers)
    params = network.init(jax.random.key(0))
    step = jax.jit(jax.value_and_grad(partial(mean_loss, network), has_aux=True))
    (loss, _), grads = step(params, *puzzle_batch(3), key)
    return loss, grads


@pytest.mark.slow
def test_rematerialisation_and_scanned_layers_change_no_value(x64):
    options = {"positional_encoding": "rope2d", "key": jax.random.key(7), "dropout": 0.2}
    loss, grads = value_and_gradients("none", **options)
    for remat, scan_layers in [("block", True), ("iteration", False), ("nested", True)]:
        other_loss, other_grads = value_and_gradients(remat, scan_layers, **options)
        close(other_loss, loss, 1e-12)
        jax.tree.map(partial(close, rtol=1e-9), other_grads, grads)


@pytest.mark.slow
def test_rematerialisation_saves_memory():
    puzzles, solutions = puzzle_batch(8)
    bytes_needed = []
    for remat in Sudoku.REMATS:
        network = registry.build(SudokuConfig(**SMALL | {"iterations": 12, "n_layers": 4}), remat=remat)
        step = jax.jit(jax.grad(partial(mean_loss, network), has_aux=True))
        compiled = step.lower(network.abstract, puzzles, solutions, jax.random.key(0)).compile()
        bytes_needed.append(compiled.memory_analysis().temp_size_in_bytes)
    none, block, iteration, nested = bytes_needed
    assert max(block, iteration) < none / 3, bytes_needed
    assert nested < iteration / 1.5


@pytest.mark.parametrize("activation", ["relu", "gelu", "relu2", "sine"])
def test_activations(activation):
    """Each is what its name says, seen from the block's own function."""
    network = registry.build(SudokuConfig(**SMALL, mlp_activation=activation))
    act = network.merge(network.init(jax.random.key(0))).block_list()[0].mlp.act
    z = jnp.linspace(-2, 2, 24)
    formulas = {
        "relu": lambda z: np.maximum(z, 0),
        "gelu": lambda z: z * (1 + np.vectorize(math.erf)(z / math.sqrt(2))) / 2,
        "relu2": lambda z: np.maximum(z, 0) ** 2,
    }
    if activation == "sine":
        assert {"amplitude", "frequency", "decay"} <= set(network.infos["blocks"]["mlp"]["act"])
        np.testing.assert_allclose(act(-z), -act(z), rtol=1e-6)
    else:
        np.testing.assert_allclose(act(z), formulas[activation](np.asarray(z)), atol=1e-6)


def test_bf16_computes_near_float32_with_a_float32_stream():
    puzzles, solutions = puzzle_batch(4)
    losses = []
    for dtype in (jnp.float32, jnp.bfloat16):
        network = registry.build(SudokuConfig(**SMALL), dtype=dtype)
        params = network.init(jax.random.key(0))
        (h, p), logits = network.merge(params).iterate(network.merge(params).start(puzzles))
        assert h.dtype == p.dtype == logits.dtype == jnp.float32
        losses.append(float(mean_loss(network, params, puzzles, solutions)[0]))
    assert losses[0] != losses[1]
    assert abs(losses[0] - losses[1]) < 0.02 * losses[0]


def test_dropout_follows_its_key_alone():
    network = registry.build(SudokuConfig(**SMALL, dropout=0.5))
    params, (puzzles, solutions) = network.init(jax.random.key(0)), puzzle_batch(4)
    loss = jax.jit(lambda key: mean_loss(network, params, puzzles, solutions, key)[0])
    first, again, other = (float(loss(jax.random.key(i))) for i in (0, 0, 1))
    assert first == again
    assert first != other


def test_more_iterations_continue_the_fewer():
    network = registry.build(SudokuConfig(**SMALL))
    model, (puzzles, _) = network.merge(network.init(jax.random.key(0))), puzzle_batch(2)
    few, many = (model.run(puzzles, lambda logits: logits, iterations=n) for n in (3, 5))
    np.testing.assert_allclose(many[:3], few, rtol=1e-5, atol=1e-6)


def test_sums_count_the_holes_alone():
    puzzles, solutions = puzzle_batch(5)
    logits = jax.random.normal(jax.random.key(0), (5, 81, 9))
    logits = logits.at[1].set(100.0 * jax.nn.one_hot(solutions[1].astype(int) - 1, 9))
    sums = empty_cell_sums(logits, puzzles, solutions)
    p = np.asarray(jax.nn.softmax(logits))
    nll, correct = 0.0, 0
    for b, cell in np.argwhere(puzzles == 0):
        nll -= np.log(p[b, cell, solutions[b, cell] - 1])
        correct += p[b, cell].argmax() == solutions[b, cell] - 1
    np.testing.assert_allclose(sums["nll"], nll, rtol=1e-5)
    assert sums["correct"] == correct
    grids = filled(logits, puzzles)
    assert ((grids == puzzles) | (puzzles == 0)).all()
    assert (grids == solutions).all(axis=1).tolist() == [False, True, False, False, False]


def test_an_unknown_remat_is_refused():
    with pytest.raises(ConfigError, match=r"train\.remat: is 'dots', must be one of none, block, iteration, nested"):
        registry.build(SudokuConfig(), remat="dots")


@pytest.mark.parametrize(
    ("field", "options"),
    [
        ("model.d_model", {"d_model": 30}),
        ("model.positional_encoding", {"d_model": 24, "n_heads": 4, "positional_encoding": "rope2d"}),
        ("model.dropout", {"dropout": 1.0}),
        ("model.iterations", {"iterations": 0}),
        ("model.sine.freq_init", {"sine": SineConfig(freq_init=3.0)}),
    ],
)
def test_settings_that_cannot_be_used(field, options):
    with pytest.raises(ConfigError, match=f"^{field}: "):
        SudokuConfig(**options).check("model")


def test_muon_is_for_the_blocks_alone():
    infos = registry.build(SudokuConfig(**SMALL)).infos
    kinds = {name: infos[name]["kernel"].kind for name in ("embed", "feedback", "head")}
    assert set(kinds.values()) == {"embedding"}
    attention, mlp = infos["blocks"]["attn"], infos["blocks"]["mlp"]
    layers = [attention[name] for name in "qkvo"] + [mlp[name] for name in ("fc1", "fc2")]
    assert {layer["kernel"].kind for layer in layers} == {"matrix"}
