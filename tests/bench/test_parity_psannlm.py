"""psannlm's PyTorch models and ours train alike: the same losses from the same weights on the same batches."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the parity extra: pip install 'psann_jax[parity]'")
pytest.importorskip("psannlm", reason="needs the parity extra: pip install 'psann_jax[parity]'")

import torch
from psannlm.lm.train.trainer import LMTrainer

from psann_jax.bench import generate, peer, throughput
from psann_jax.config import Config, DataConfig, DecoderConfig, SineConfig, SpectralConfig, TrainConfig, WaveConfig
from psann_jax.convert.psannlm_names import from_psannlm
from psann_jax.data.random_text import RandomText
from psann_jax.models.network import build
from psann_jax.nn.mesh import make_mesh
from psann_jax.sample.settings import Sampling
from psann_jax.tasks.lm import LanguageModel
from psann_jax.train.compilation import compile_steps
from psann_jax.train.mesh import put_batch
from psann_jax.train.step import init_state

STEPS, ROWS, LENGTH, VOCAB = 100, 8, 32, 64
SIZES = {"vocab_size": VOCAB, "d_model": 32, "n_layers": 2, "n_heads": 2, "d_mlp": 64}
TRAIN = TrainConfig(
    steps=STEPS,
    warmup_steps=10,
    batch_tokens=ROWS * LENGTH,
    lr=3e-3,
    end_lr_ratio=0.0,
    weight_decay=0.1,
    weight_decay_on="all",
    grad_clip=1.0,
    precision="fp32",
)


class _Text:
    """A Markov chain that can be learned: every token has four successors."""

    has_scored = False

    class tokenizer:
        vocab_size = VOCAB

    def batches(self):
        rng = np.random.default_rng(0)
        successors = rng.integers(0, VOCAB, (VOCAB, 4))
        for _ in range(STEPS):
            rows = [rng.integers(0, VOCAB, ROWS)]
            for _ in range(LENGTH):
                rows.append(successors[rows[-1], rng.integers(0, 4, ROWS)])
            yield np.stack(rows, axis=1).astype(np.int32)


def their_losses(model, batches):
    """By psannlm's own optimizer and schedule, in the order of its trainer's loop."""
    settings = ("warmup_steps", "lr", "weight_decay", "grad_clip", "betas", "eps")
    trainer = LMTrainer({"amp": "fp32", **{name: getattr(TRAIN, name) for name in settings}})
    optimizer = trainer._build_optimizer(model)
    schedule = trainer._build_scheduler(optimizer, STEPS)
    losses = []
    for tokens in batches:
        rows = torch.from_numpy(tokens).long()
        loss = torch.nn.functional.cross_entropy(model(rows[:, :-1]).flatten(0, 1), rows[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), TRAIN.grad_clip)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())
    return losses


def our_losses(config, params, batches):
    """By the compiled training step."""
    task, mesh = LanguageModel(config, _Text()), make_mesh(config.mesh)
    compiled = compile_steps(task, config, mesh)
    losses = []
    with jax.set_mesh(mesh):
        state = init_state(task.network, config.train, compiled.spec, config.seed)
        assert jax.tree.map(jnp.shape, state["params"]) == jax.tree.map(np.shape, params)
        state["params"] = jax.device_put(params, compiled.spec.shardings["params"])
        for tokens in batches:
            positions = np.broadcast_to(np.arange(LENGTH + 1, dtype=np.int32), tokens.shape)
            batch = {"tokens": tokens, "segment_ids": np.ones_like(tokens), "positions": positions}
            state, metrics = compiled.train_step(state, put_batch(batch, compiled.batch))
            losses.append(float(metrics["loss"]))
    return losses


@pytest.mark.parametrize("base", ["transformer", "waveresnet"])
def test_a_hundred_steps_have_the_same_losses(base):
    config = Config(
        model=DecoderConfig(base=base, **SIZES), data=DataConfig(max_length=LENGTH, document_mask=False), train=TRAIN
    )
    torch.manual_seed(0)
    model = peer.build_model(config.model)
    params = from_psannlm({k: v.detach().numpy().copy() for k, v in model.state_dict().items()}, config.model)
    batches = list(_Text().batches())
    theirs = their_losses(model, batches)
    ours = our_losses(config, params, batches)
    assert theirs[-1] < theirs[0] - 1, "the model must learn, or equal losses mean little"
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    "options",
    [
        {"base": "transformer", "mlp_activation": "relu", "positional_encoding": "alibi"},
        {"base": "respsann", "sine": SineConfig(amp_bounds=(0.5, 2.0), freq_init_std=0.0, freq_range=(1.0, 2.0))},
        {"base": "sgrpsann", "spectral": SpectralConfig(k_fft=8, gate_groups="full")},
        {"base": "waveresnet", "wave": WaveConfig(interleave=True, kernel=5, dilation_growth=2)},
    ],
)
def test_the_measured_peer_is_the_same_model(options):
    """The same parameters by name and shape, so that no speed is compared with another model's."""
    config = DecoderConfig(**SIZES, **options)
    theirs = {k: v.detach().numpy() for k, v in peer.build_model(config).state_dict().items()}
    network = build(config)
    assert jax.tree.map(np.shape, from_psannlm(theirs, config)) == jax.tree.map(jnp.shape, network.abstract)


def test_throughput_against_psannlm_measures_both():
    config = Config(
        model=DecoderConfig(base="respsann", **SIZES),
        data=DataConfig(max_length=LENGTH),
        train=dataclasses.replace(TRAIN, grad_accum=2),
    )
    result = throughput.measure(config, peer_name="psannlm", n_steps=2)
    assert [f["name"] for f in result["contenders"]] == [
        "respsann",
        "psannlm, math attention",
        "psannlm, sdpa attention",
    ]
    assert len({f["n_params"] for f in result["contenders"]}) == 1
    assert result["ratio"] == result["tokens_per_s"] / result["peer_tokens_per_s"]
    assert result["peer_peak_memory_mb"] > 100
    assert len(result["differences"]) == 1
    assert "document mask" in throughput.report(result)


def test_generation_against_psannlm_measures_both():
    config = Config(model=DecoderConfig(base="waveresnet", **SIZES), data=DataConfig(max_length=LENGTH), train=TRAIN)
    result = generate.measure(
        config, Sampling(top_p=1.0), peer_name="psannlm", batches=[2], prompt_tokens=4, max_new_tokens=6
    )
    (row,) = result["results"]
    assert [f["name"].split(",")[0] for f in row["contenders"]] == ["waveresnet", "psannlm", "psannlm"]
    assert result["ratio"] == row["ratio"] > 0
    assert result["peer_tokens_per_s"] == max(f["tokens_per_s"] for f in row["contenders"][1:])
    assert all(f["first_s"] > 0 and f["step_s"] > 0 for f in row["contenders"])


@pytest.mark.parametrize("grad_clip", [0.0, 0.1])
def test_the_measured_peer_trains_on_the_batches_of_the_config(grad_clip):
    """Its first update is the one that PyTorch makes by hand; micro-batches sum to the whole batch."""
    # A large eps, as without one the first update of Adam is the same for gradients of any size.
    train = dataclasses.replace(TRAIN, lr=1.0, eps=0.1, grad_clip=grad_clip)
    config = Config(
        model=DecoderConfig(base="respsann", **SIZES),
        data=DataConfig(max_length=LENGTH, document_mask=False),
        train=dataclasses.replace(train, grad_accum=4),
    )
    contender = peer.make(config, "math")
    torch.manual_seed(config.seed)
    model = peer.build_model(config.model)
    torch.testing.assert_close(contender._model.state_dict(), model.state_dict())
    batches = RandomText(config).train_batches(seed=config.seed, batch_size=config.batch_size)
    rows = torch.from_numpy(next(batches)["tokens"]).long()
    torch.nn.functional.cross_entropy(model(rows[:, :-1]).flatten(0, 1), rows[:, 1:].flatten()).backward()
    if grad_clip:
        assert torch.nn.utils.clip_grad_norm_(model.parameters(), grad_clip) > grad_clip
    torch.optim.AdamW(
        model.parameters(), lr=train.lr, betas=train.betas, eps=train.eps, weight_decay=train.weight_decay
    ).step()
    assert len(contender.run(1)) == 1
    for name, value in contender._model.state_dict().items():
        torch.testing.assert_close(value, model.state_dict()[name], rtol=0, atol=1e-4, msg=name)
