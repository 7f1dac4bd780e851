"""Folders of GPT-2: a plain forward pass has the same logits; what has no counterpart is named."""

import json

import jax
import numpy as np
import pytest
import safetensors.numpy

from psann_jax.convert.hf.read import read_folder
from psann_jax.convert.hf.write import write_folder
from psann_jax.utils.errors import UserError
from tests.support.weights import weights_of

V, L, D, H, N = 40, 12, 16, 2, 2
CONFIG = {"model_type": "gpt2", "vocab_size": V, "n_positions": L, "n_embd": D, "n_layer": N, "n_head": H}


def random_arrays(d_mlp=4 * D, seed=0):
    rng = np.random.default_rng(seed)
    shapes = {"wte.weight": (V, D), "wpe.weight": (L, D), "ln_f.weight": (D,), "ln_f.bias": (D,)}
    for i in range(N):
        layers = {"attn.c_attn": (D, 3 * D), "attn.c_proj": (D, D), "mlp.c_fc": (D, d_mlp), "mlp.c_proj": (d_mlp, D)}
        for name, shape in layers.items():
            shapes |= {f"h.{i}.{name}.weight": shape, f"h.{i}.{name}.bias": shape[1:]}
        shapes |= {f"h.{i}.ln_{k}.{name}": (D,) for k in (1, 2) for name in ("weight", "bias")}
    return {name: rng.normal(0, 0.3, shape).astype(np.float32) for name, shape in shapes.items()}


def write(folder, arrays, **changes):
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({**CONFIG, **changes}))
    safetensors.numpy.save_file(arrays, folder / "model.safetensors")
    return folder


def gpt2(w, tokens_L, act):
    """Logits (L, V) of one document, in float64."""
    w = {name: a.astype(np.float64) for name, a in w.items()}

    def norm(x, name):
        x = x - x.mean(-1, keepdims=True)
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-5) * w[f"{name}.weight"] + w[f"{name}.bias"]

    def layer(x, name):
        return x @ w[f"{name}.weight"] + w[f"{name}.bias"]

    n = len(tokens_L)
    x = w["wte.weight"][tokens_L] + w["wpe.weight"][:n]
    for i in range(N):
        qkv = layer(norm(x, f"h.{i}.ln_1"), f"h.{i}.attn.c_attn")
        q, k, v = (part.reshape(n, H, -1).swapaxes(0, 1) for part in np.split(qkv, 3, -1))
        s = np.where(np.tri(n, dtype=bool), q @ k.swapaxes(1, 2) / np.sqrt(D // H), -np.inf)
        p = np.exp(s - s.max(-1, keepdims=True))
        p /= p.sum(-1, keepdims=True)
        x = x + layer((p @ v).swapaxes(0, 1).reshape(n, D), f"h.{i}.attn.c_proj")
        x = x + layer(act(layer(norm(x, f"h.{i}.ln_2"), f"h.{i}.mlp.c_fc")), f"h.{i}.mlp.c_proj")
    return norm(x, "ln_f") @ w["wte.weight"].T


def gelu_tanh(z):
    return 0.5 * z * (1 + np.tanh(np.sqrt(2 / np.pi) * (z + 0.044715 * z**3)))


ACTIVATIONS = {None: gelu_tanh, "gelu_pytorch_tanh": gelu_tanh, "relu": lambda z: np.maximum(z, 0)}


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("prefix", ["", "transformer."])
def test_logits_are_those_of_a_plain_forward_pass(name, prefix, tmp_path):
    arrays, changes = random_arrays(24 if name else 4 * D), {"activation_function": name, "n_inner": 24} if name else {}
    constants = {f"h.0.attn.{k}": np.ones((1, 1, L, L), np.float32) for k in ("bias", "masked_bias")}
    saved = {f"{prefix}{k}": a for k, a in (arrays | constants).items()} | {"lm_head.weight": arrays["wte.weight"]}
    ours = read_folder(write(tmp_path / "a", saved, **changes))
    assert (ours.config.model.base, ours.config.data.max_length) == ("vanilla", L)
    tokens_BxL = np.random.default_rng(1).integers(0, V, (2, L))
    network = ours.network()
    logits = jax.jit(lambda params: network.merge(params)(tokens_BxL))(ours.params)
    expected = np.stack([gpt2(arrays, tokens_L, ACTIVATIONS[name]) for tokens_L in tokens_BxL])
    np.testing.assert_allclose(logits, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layer_norm_epsilon": 1e-6}, "layer_norm_epsilon is 1e-06, must be 1e-05"),
        ({"scale_attn_weights": False}, "scale_attn_weights is False, must be True"),
        ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx is True, must be False"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings is False, must be True"),
        ({"activation_function": "quick_gelu"}, "activation_function is 'quick_gelu', must be gelu_new or"),
        ({"activation_function": ["gelu"]}, "activation_function is ['gelu'], must be gelu_new or"),
        ({"n_inner": 0}, "n_inner is 0, must be a positive integer"),
        ({"n_head": None}, "n_head is None, must be a positive integer"),
        ({"n_layer": 3}, "model.n_layers: is 3, but"),
        ({"n_inner": 32}, "mlp/fc1"),
    ],
)
def test_what_has_no_counterpart_is_named(changes, message, tmp_path):
    with pytest.raises(UserError) as refused:
        read_folder(write(tmp_path / "a", random_arrays(), **changes))
    assert message in str(refused.value)
    assert str(tmp_path) in str(refused.value)
    assert "\n" not in str(refused.value)


def test_an_unknown_parameter_is_named(tmp_path):
    arrays = random_arrays() | {"h.0.attn.rotary.weight": np.zeros((D, D), np.float32)}
    with pytest.raises(UserError, match=r"config\.json: model: gpt2 parameter 'h\.0\.attn\.rotary\.weight' has no"):
        read_folder(write(tmp_path / "a", arrays))


def test_logits_and_tokens_are_those_of_transformers(tmp_path):
    torch = pytest.importorskip("torch", reason="needs torch; pip install 'psann_jax[transformers]'")
    transformers = pytest.importorskip("transformers", reason="needs the extra transformers")
    torch.manual_seed(0)
    settings = {name: value for name, value in CONFIG.items() if name != "model_type"}
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**settings)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    model.save_pretrained(tmp_path / "a")
    ours = read_folder(tmp_path / "a")
    tokens_BxL = np.random.default_rng(1).integers(0, V, (2, L))
    network = ours.network()
    with torch.no_grad():
        expected = model(torch.tensor(tokens_BxL)).logits.numpy()
    logits = jax.jit(lambda params: network.merge(params)(tokens_BxL))(ours.params)
    np.testing.assert_allclose(logits, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("base", ["vanilla", "ngt"])
def test_the_approximate_gelu_is_exported(base, tmp_path):
    torch = pytest.importorskip("torch", reason="needs torch; pip install 'psann_jax[transformers]'")
    transformers = pytest.importorskip("transformers", reason="needs the extra transformers")
    ours = weights_of(base, mlp_activation="gelu_tanh")
    write_folder(tmp_path / "a", ours, "runs/a")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "a", trust_remote_code=True, dtype="auto")
    tokens_BxL = np.random.default_rng(0).integers(0, 260, (2, 24))
    network = ours.network()
    with torch.no_grad():
        logits = model.eval()(torch.tensor(tokens_BxL)).logits.numpy()
    expected = jax.jit(lambda params: network.merge(params)(tokens_BxL))(ours.params)
    np.testing.assert_allclose(logits, expected, atol=1e-4, rtol=0)
