"""Folders of transformers in transformers itself: the same logits, greedy texts and token ids.

Needs `pip install 'psann_jax[transformers]'`.
"""

import copy

import jax
import numpy as np
import pytest

from psann_jax.convert.hf.standard import standard_type
from psann_jax.convert.hf.write import write_folder
from psann_jax.sample.sampler import Sampler
from psann_jax.sample.settings import GenerationOptions, Sampling
from psann_jax.sample.text import TextSampler
from tests.convert.test_hf import STANDARD, weights
from tests.support.variants import VARIANTS

torch = pytest.importorskip("torch", reason="needs torch; pip install 'psann_jax[transformers]'")
transformers = pytest.importorskip("transformers", reason="needs transformers; pip install 'psann_jax[transformers]'")

PROMPTS = ["the sun", "a wave falls under", ""]
CASES = [*((name, ()) for name in VARIANTS), *(case for case in STANDARD if case[1])]
# One case for each architecture and each part of the PyTorch code; the others are slow.
QUICK = {
    "modern",
    "modern_swiglu_tied_softcap",
    "transformer",
    "transformer_one_kv_head_window_alibi",
    "respsann_sinusoidal",
    "waveresnet_dilated",
    "waveresnet_replace",
    "sgrpsann",
    "sgrpsann_fourier_full",
    "vanilla",
    "ngt",
    "ngt_attractive_decay",
}
CASES = [case if case[0] in QUICK else pytest.param(case, marks=pytest.mark.slow) for case in CASES]


@pytest.fixture(scope="module", params=CASES, ids=str)
def models(request, tmp_path_factory):
    """Weights here, and the model and tokenizer that transformers loads."""
    folder = tmp_path_factory.mktemp("hf") / "model"
    ours = weights(request.param)
    write_folder(folder, ours, "runs/a")
    options = {"trust_remote_code": (folder / "config.json").read_text().count("auto_map") > 0}
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype="auto", **options).eval()
    return ours, model, transformers.AutoTokenizer.from_pretrained(folder, **options)


def own_code(ours):
    """Names of the files of PyTorch code in the folder."""
    model = ours.config.model
    if hasattr(model, "resolve") and standard_type(model.resolve()):
        return set()
    return {"modeling_ngt.py" if model.base == "ngt" else "modeling_psann.py"}


def test_logits_are_equal(models):
    ours, model, _ = models
    tokens = np.random.default_rng(0).integers(0, 260, (2, 24))
    network = ours.network()
    expected = jax.jit(lambda params, tokens: network.merge(params)(tokens))(ours.params, tokens)
    with torch.no_grad():
        logits = model(torch.tensor(tokens)).logits
    assert logits.dtype == torch.float32
    np.testing.assert_allclose(logits.numpy(), expected, atol=1e-4, rtol=0)


def test_greedy_texts_are_equal(models):
    """Prompts of different lengths in one batch, which transformers pads on the left; with and without its cache."""
    ours, model, tokenizer = models
    sampler = Sampler(ours.network(), ours.params, eos_id=ours.tokenizer.eos_id, max_length=32)
    options = GenerationOptions(max_new_tokens=8)
    expected = [
        c.tokens for c in TextSampler(sampler, ours.tokenizer).complete(PROMPTS, Sampling(temperature=0), options)
    ]
    inputs = tokenizer(PROMPTS, return_tensors="pt", padding=True)
    for use_cache in (True, False):
        rows = model.generate(**inputs, max_new_tokens=8, do_sample=False, use_cache=use_cache)
        new = rows[:, inputs["input_ids"].shape[1] :].tolist()
        assert [row[: len(ids)] for row, ids in zip(new, expected, strict=True)] == expected


def test_a_cache_filled_in_parts_gives_the_same_logits(models):
    _, model, _ = models
    tokens = torch.tensor(np.random.default_rng(1).integers(4, 260, (2, 20)))
    with torch.no_grad():
        whole = model(tokens).logits
        first = model(tokens[:, :7], use_cache=True)
        name = "cache" if "cache" in first else "past_key_values"
        later = model(tokens[:, 7:], use_cache=True, **{name: first[name]})
    np.testing.assert_allclose(torch.cat([first.logits, later.logits], 1).numpy(), whole.numpy(), atol=1e-4, rtol=0)


def test_beams_and_the_loss(models):
    """Beams reorder the cache; the loss is the mean over the targets."""
    _, model, tokenizer = models
    inputs = tokenizer(PROMPTS[:2], return_tensors="pt", padding=True)
    beams = [
        model.generate(**inputs, max_new_tokens=4, do_sample=False, num_beams=3, use_cache=use_cache).tolist()
        for use_cache in (True, False)
    ]
    assert beams[0] == beams[1]
    tokens = torch.tensor(np.random.default_rng(2).integers(4, 260, (2, 12)))
    with torch.no_grad():
        out = model(tokens, labels=tokens)
    chosen = torch.log_softmax(out.logits[:, :-1].float(), -1).gather(-1, tokens[:, 1:, None])
    assert out.loss.item() == pytest.approx(-chosen.mean().item(), abs=1e-5)


def test_every_parameter_learns_and_half_precision_runs(models):
    _, model, _ = models
    tokens = torch.tensor(np.random.default_rng(3).integers(4, 260, (2, 12)))
    model.zero_grad()
    model(tokens, labels=tokens).loss.backward()
    without = [name for name, p in model.named_parameters() if p.grad is None]
    # The radius of a hard cutoff, the decay of decay_mode none, and coordinates after the last block have no effect.
    inactive = ("radius", "decay", "blocks.1.next", "blocks.1.coord_norm")
    assert [name for name in without if not any(part in name for part in inactive)] == []
    with torch.no_grad():
        exact = model(tokens).logits
        rough = copy.deepcopy(model).to(torch.bfloat16)(tokens).logits
    assert (rough.float() - exact).abs().mean() < 0.1 * exact.abs().mean()


def test_a_text_longer_than_the_table_of_positions_is_an_error(models):
    ours, model, _ = models
    tokens = torch.full((1, 49), 5)  # the table has 48
    if ours.config.model.base not in ("vanilla", "ngt"):
        assert model(tokens).logits.shape == (1, 49, 260)
        return
    with pytest.raises(ValueError, match="the model has 48 positions"):
        model(tokens)
    padded = torch.ones(1, 49).index_fill(1, torch.tensor([0]), 0)
    assert torch.isfinite(model(tokens, attention_mask=padded).logits[:, 1:]).all()


def test_token_ids_are_equal(models):
    ours, _, tokenizer = models
    for text in ("the sun", "Hé <eos> 日本 😀", ""):
        ids = ours.tokenizer.encode(text)
        assert tokenizer(text)["input_ids"] == [ours.tokenizer.bos_id, *ids]
        assert tokenizer.decode(ids) == ours.tokenizer.decode(ids)
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 0)


def test_a_model_saved_by_transformers_is_read(models, tmp_path):
    from psann_jax.convert.hf.read import read_folder
    from psann_jax.convert.weights import flat_params

    ours, model, tokenizer = models
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.glob("*.py")} == own_code(ours)
    again = read_folder(tmp_path)
    before, after = flat_params(ours.params), flat_params(again.params)
    assert before.keys() == after.keys()
    assert all(np.array_equal(before[name], after[name]) for name in before)
    assert again.tokenizer.encode("the sun <eos>") == ours.tokenizer.encode("the sun <eos>")
