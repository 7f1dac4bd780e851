"""Suggestions for names."""

import pytest

from psann_jax.config.families import families
from psann_jax.config.io import default_config, flatten
from psann_jax.config.names import nearest

SETTINGS = sorted(dict(flatten(default_config().to_dict())))


@pytest.mark.parametrize(
    ("name", "suggestion"),
    [
        ("lr", "train.lr"),
        ("train.lrr", "train.lr"),
        ("training.lr", "train.lr"),
        ("learning_rate", "train.lr"),
        ("train.learning_rate", "train.lr"),
        ("epochs", "train.steps"),
        ("num_train_epochs", "train.steps"),
        ("train.batch_size", "train.batch_tokens"),
        ("context_length", "data.max_length"),
        ("block_size", "data.max_length"),
        ("data.seq_len", "data.max_length"),
        ("hidden_size", "model.d_model"),
        ("model.n_embd", "model.d_model"),
        ("num_layers", "model.n_layers"),
        ("num_attention_heads", "model.n_heads"),
        ("model.dropuot", "model.dropout"),
        ("max_grad_norm", "train.grad_clip"),
        ("report_to", "train.loggers"),
        ("gradient-accumulation-steps", "train.grad_accum"),
    ],
)
def test_a_setting_is_found_by_part_by_similarity_and_by_meaning(name, suggestion):
    assert nearest(name, SETTINGS) == f", did you mean {suggestion}?"


@pytest.mark.parametrize("name", ["gpt", "gpt2", "gpt-neox", "llama", "bert", "mamba", "rwkv"])
def test_another_program_is_no_misspelt_base(name):
    assert nearest(name, families()) == ""


def test_flags_are_found_with_their_dashes():
    assert nearest("--temp", ["--top_k", "--temperature"]) == ", did you mean --temperature?"
    assert nearest("--top-k", ["--top_k", "--temperature"]) == ", did you mean --top_k?"
    assert nearest("--batch_size", ["--batch_sizes", "--config.train.batch_tokens"]) == ", did you mean --batch_sizes?"
