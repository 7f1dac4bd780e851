"""Import of files written by psannlm itself: same logits, same greedy text, and no code is executed."""

import os
import pickle
import random
import warnings

import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the parity extra: pip install 'psann_jax[parity]'")
pytest.importorskip("psannlm", reason="needs the parity extra: pip install 'psann_jax[parity]'")

import torch
from psannlm.lm import api as theirs
from psannlm.lm.config import TrainConfig as TheirTraining

from psann_jax.convert.psannlm import PsannlmWarning, read_psannlm
from psann_jax.sample.sampler import Sampler
from psann_jax.sample.settings import GenerationOptions, Sampling
from psann_jax.sample.text import TextSampler
from psann_jax.utils.errors import UserError
from tests.support.tiny import WORDS
from tests.support.weights import PSANNLM_SIZES, psannlm_model, psannlm_version_012

SINE = {"amp_init": 1.1, "freq_init": 1.7, "damp_init": 0.02, "amp_init_std": 0.1, "freq_init_std": 0.2}
CAUSAL = {
    "transformer": {"base": "transformer"},
    "transformer_relu": {"base": "transformer", "mlp_activation": "relu"},
    "respsann": {"base": "respsann", "sine": SINE},
    "respsann_alibi": {"base": "respsann", "positional_encoding": "alibi"},
    "respsann_sinusoidal_gelu": {"base": "respsann", "positional_encoding": "sinusoidal", "mlp_activation": "gelu"},
    "respsann_bounds": {"base": "respsann", "sine": {"freq_bounds": (0.2, 1.0), "decay_mode": "relu"}},
    "waveresnet": {"base": "waveresnet"},
}
LOOKING_AHEAD = {
    "interleave": ({"base": "waveresnet", "wave_interleave": True, "wave_kernel_size": 5}, "2 tokens ahead"),
    "replace": ({"base": "waveresnet", "wave_interleave": True, "wave_replace": True}, "residual"),
    "sgrpsann": ({"base": "sgrpsann", "use_spectral_gate": True, "k_fft": 6, "gate_strength": 0.5}, "spectral gate"),
}


def saved(path, model):
    """Writes the file that psannLM.save of 2.0 writes."""
    from psannlm.persistence import model_payload

    torch.save(model_payload(model, None), path)
    return path


def our_logits(weights, tokens_BxL):
    model = weights.network().merge(weights.params)
    return np.asarray(model.logits(model.hidden(jnp.asarray(tokens_BxL))[0]))


def their_logits(model, tokens_BxL):
    with torch.no_grad():
        return model(torch.from_numpy(tokens_BxL).long()).numpy()


TOKENS = np.random.default_rng(0).integers(0, PSANNLM_SIZES["vocab_size"], (3, 24)).astype(np.int32)


@pytest.mark.parametrize("name", CAUSAL)
def test_logits_are_psannlms(name, tmp_path):
    model = psannlm_model(CAUSAL[name])
    with warnings.catch_warnings():
        warnings.simplefilter("error", PsannlmWarning)
        weights = read_psannlm(saved(tmp_path / "model.pt", model), max_length=32)
    assert weights.config.model.base == CAUSAL[name]["base"]
    np.testing.assert_allclose(our_logits(weights, TOKENS), their_logits(model, TOKENS), rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", LOOKING_AHEAD)
def test_models_that_look_ahead_are_imported_with_a_warning(name, tmp_path):
    options, message = LOOKING_AHEAD[name]
    model = psannlm_model(options)
    with pytest.warns(PsannlmWarning, match=message):
        weights = read_psannlm(saved(tmp_path / "model.pt", model))
    assert np.isfinite(our_logits(weights, TOKENS)).all()
    assert np.abs(our_logits(weights, TOKENS) - their_logits(model, TOKENS)).max() > 1e-2


def test_a_wave_kernel_keeps_its_past_taps(tmp_path):
    """If the tap that looks ahead is zero and the others are shifted by one, both convolutions are equal."""
    model = psannlm_model({"base": "waveresnet", "wave_interleave": True})
    with torch.no_grad():
        for block in model.blocks:
            block.wave.dw.weight[..., 2] = 0
    with pytest.warns(PsannlmWarning):
        weights = read_psannlm(saved(tmp_path / "model.pt", model))
    conv = weights.params["blocks"]["wave"]["conv"]  # (N, taps, D), the newest tap first
    weights.params["blocks"]["wave"]["conv"] = np.stack([conv[:, 1], conv[:, 2], np.zeros_like(conv[:, 0])], axis=1)
    np.testing.assert_allclose(our_logits(weights, TOKENS), their_logits(model, TOKENS), rtol=0, atol=1e-4)


# --- file formats ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(psannlm's model after a fit, its data, the directory with its files)."""
    out = tmp_path_factory.mktemp("psannlm")
    rng = random.Random(0)
    texts = [" ".join(rng.choices(WORDS, k=rng.randint(4, 9))) for _ in range(60)]
    data = theirs.PSANNLMDataPrep(texts, tokenizer="tokenizers", max_length=16)
    sizes = {name: PSANNLM_SIZES[name] for name in ("d_model", "n_layers", "n_heads", "d_mlp")}
    model = theirs.PSANNLM(config={"architecture": "residual", **sizes})
    training = TheirTraining(
        epochs=2,
        batch_tokens=128,
        lr=5e-3,
        warmup_steps=2,
        amp="fp32",
        checkpoint_dir=str(out),
        dataloader_num_workers=0,
    )
    model.fit(data, train=training)
    model.save(str(out / "saved.pt"))
    return model, data, out


def test_the_trainers_file_equals_the_saved_model(trained):
    model, _, out = trained
    network = model._model.eval()
    for name in ("final.pt", "saved.pt"):
        weights = read_psannlm(out / name)
        np.testing.assert_allclose(our_logits(weights, TOKENS), their_logits(network, TOKENS), rtol=0, atol=1e-4)
        assert weights.config.model.base == "respsann"


def test_the_same_greedy_text(trained):
    """Theirs by a full forward pass per token, because psannlm's own sampler starts after an eos."""
    model, data, out = trained
    weights = read_psannlm(out / "saved.pt", max_length=64)
    network, tokenizer = model._model.eval(), data.tokenizer
    sampler = Sampler(weights.network(), weights.params, eos_id=weights.tokenizer.eos_id, max_length=64)
    for prompt in ("the sun", "bright stone falls under"):
        ids = [tokenizer.bos_id, *tokenizer.encode(prompt, add_specials=False)]
        n_prompt = len(ids)
        for _ in range(20):
            ids.append(int(their_logits(network, np.array([ids], np.int32))[0, -1].argmax()))
            if ids[-1] == tokenizer.eos_id:
                break
        assert len(ids) > n_prompt + 2
        options = GenerationOptions(max_new_tokens=20)
        (done,) = TextSampler(sampler, weights.tokenizer).complete([prompt], Sampling(temperature=0), options)
        assert done.tokens == ids[n_prompt:]
        assert done.text.strip() == tokenizer.decode(ids[n_prompt:], skip_specials=True).strip()


@pytest.mark.parametrize("prefix", ["", "module.", "module._orig_mod."])
def test_a_trainers_file_of_012_needs_n_heads(prefix, tmp_path):
    model = psannlm_model({"base": "respsann"})
    path = tmp_path / "old.pt"
    torch.save(psannlm_version_012(model, prefix=prefix), path)
    with pytest.raises(UserError, match=r"^n_heads: is missing; .*does not contain it"):
        read_psannlm(path)
    with pytest.warns(PsannlmWarning, match="positional_encoding; rope is assumed"):
        weights = read_psannlm(path, n_heads=4)
    np.testing.assert_allclose(our_logits(weights, TOKENS), their_logits(model, TOKENS), rtol=0, atol=1e-4)


def test_a_saved_model_of_012(tmp_path):
    model = psannlm_model({"base": "waveresnet", "positional_encoding": "sinusoidal"})
    config = {
        "base": "waveresnet",
        **PSANNLM_SIZES,
        "rope": False,
        "positional_encoding": "sinusoidal",
        "vocab_size": None,
    }
    config["sine"] = {"amp_init": 1.0, "freq_init": 1.0, "damp_init": 0.01, "trainable": True}
    config["overrides"] = {"wave_interleave": True, "k_fft": 4}  # saved by psannlm, but never used
    torch.save({"config": config, "state_dict": model.state_dict(), "device": "cpu"}, tmp_path / "old.pt")
    weights = read_psannlm(tmp_path / "old.pt")
    assert weights.config.model.wave.interleave is False
    np.testing.assert_allclose(our_logits(weights, TOKENS), their_logits(model, TOKENS), rtol=0, atol=1e-4)
    with pytest.raises(UserError, match=r"^n_heads: is 2, but 4 in "):
        read_psannlm(tmp_path / "old.pt", n_heads=2)


@pytest.mark.parametrize("shape", [{"wave_interleave": True}, {"use_spectral_gate": True, "k_fft": 6}])
def test_the_base_of_a_file_without_a_config_is_inferred(shape, tmp_path):
    base = "waveresnet" if "wave_interleave" in shape else "sgrpsann"
    torch.save(psannlm_version_012(psannlm_model({"base": base, **shape})), tmp_path / "old.pt")
    with pytest.warns(PsannlmWarning, match="assumed"):
        weights = read_psannlm(tmp_path / "old.pt", n_heads=4)
    assert weights.config.model.base == base
    assert weights.config.model.spectral.k_fft == (6 if base == "sgrpsann" else 64)


# --- tokenizers -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["simple", "sentencepiece", "tokenizers", "tokenizers_shifted"])
def test_tokenizers_give_the_same_ids(backend):
    from psannlm.lm.data.tokenizer import Tokenizer, TokenizerConfig

    from psann_jax.convert.psannlm_tokenizer import tokenizer_from_state

    texts = ["the sun sings over the sea", "a wave falls under the moon, again and again"] * 20
    original = Tokenizer(
        TokenizerConfig(
            backend=backend.removesuffix("_shifted"), vocab_size=300, hf_passthrough_ids=backend == "tokenizers"
        )
    )
    original.fit(texts)
    ours = tokenizer_from_state(original.to_state(), "file.pt")
    assert ours.vocab_size == original.vocab_size
    for text in [*texts[:2], "sun, moon", "under the sea"]:
        ids = original.encode(text, add_specials=False)
        assert ours.encode(text) == ids
        assert ours.decode([ours.bos_id, *ids, ours.eos_id]) == original.decode(ids, skip_specials=True)
    assert ours.encode("the\tsea") == original.encode("the\tsea", add_specials=False), "an unknown character"
    assert (ours.pad_id, ours.bos_id, ours.eos_id, ours.unk_id) == (0, 1, 2, 3)


# --- rejected files --------------------------------------------------------------------------------------


class Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("form", ["torch", "torch_old", "plain"])
def test_code_in_a_pickle_is_not_executed(form, tmp_path):
    mark, path = tmp_path / "executed", tmp_path / "evil.pt"
    payload = {"config": {}, "state_dict": {"embed.weight": Malicious(mark)}}
    if form == "plain":
        path.write_bytes(pickle.dumps(payload))
    else:
        torch.save(payload, path, _use_new_zipfile_serialization=form == "torch")
    with pytest.raises(UserError, match="is refused") as caught:
        read_psannlm(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not mark.exists()


def test_invalid_files_are_named(tmp_path):
    whole = saved(tmp_path / "whole.pt", psannlm_model({"base": "respsann"}))
    truncated = tmp_path / "truncated.pt"
    truncated.write_bytes(whole.read_bytes()[:5000])
    (tmp_path / "empty.pt").write_bytes(b"")
    torch.save([1, 2], tmp_path / "list.pt")
    torch.save({"fc.weight": torch.zeros(3, 3)}, tmp_path / "other.pt")
    state = psannlm_model({"base": "respsann"}).state_dict()
    del state["blocks.1.mlp.fc2.weight"]
    torch.save({"config": {"n_heads": 4}, "state_dict": state}, tmp_path / "lacking.pt")
    for name in ("truncated", "empty", "list", "other", "lacking", "missing"):
        with pytest.raises(UserError) as caught:
            read_psannlm(tmp_path / f"{name}.pt", n_heads=None)
        assert "\n" not in str(caught.value)
        assert name == "lacking" or f"{name}.pt" in str(caught.value)


def test_models_without_a_counterpart_are_rejected(tmp_path):
    attention_only = psannlm_model({"base": "waveresnet", "wave_replace": True})
    with pytest.raises(UserError, match="attention only"):
        read_psannlm(saved(tmp_path / "a.pt", attention_only))
    sparse = psannlm_model({"base": "geosparse"})
    with pytest.raises(UserError, match="geometric-sparse model"):
        read_psannlm(saved(tmp_path / "b.pt", sparse))
