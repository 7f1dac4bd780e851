"""Suggestions for misspelt names, and for names that other programs use."""

import difflib
from collections.abc import Iterable

# Names of the field -> the last part of the project's own name for the same setting, most likely first.
_SYNONYMS = {
    "learning_rate": ("lr",),
    "max_lr": ("lr",),
    "peak_lr": ("lr",),
    "lr_scheduler": ("schedule",),
    "lr_scheduler_type": ("schedule",),
    "min_lr": ("end_lr_ratio",),
    "warmup": ("warmup_steps",),
    "warmup_ratio": ("warmup_steps",),
    "wd": ("weight_decay",),
    "beta1": ("betas",),
    "beta2": ("betas",),
    "adam_beta1": ("betas",),
    "adam_beta2": ("betas",),
    "adam_epsilon": ("eps",),
    "max_grad_norm": ("grad_clip",),
    "clip_grad": ("grad_clip",),
    "gradient_clip_val": ("grad_clip",),
    "epoch": ("steps",),
    "epochs": ("steps",),
    "num_epochs": ("steps",),
    "num_train_epochs": ("steps",),
    "iters": ("steps",),
    "max_iters": ("steps",),
    "max_steps": ("steps",),
    "num_steps": ("steps",),
    "batch": ("batch_tokens",),
    "batch_size": ("batch_tokens",),
    "per_device_train_batch_size": ("batch_tokens",),
    "accumulate_grad_batches": ("grad_accum",),
    "gradient_accumulation_steps": ("grad_accum",),
    "gradient_checkpointing": ("remat",),
    "dtype": ("precision",),
    "ema": ("ema_decay",),
    "logging_steps": ("log_every",),
    "report_to": ("loggers",),
    "tracker": ("loggers",),
    "eval_interval": ("every",),
    "eval_steps": ("every",),
    "save_steps": ("every",),
    "save_total_limit": ("keep",),
    "block_size": ("max_length",),
    "context_length": ("max_length",),
    "context_size": ("max_length",),
    "max_len": ("max_length",),
    "max_position_embeddings": ("max_length",),
    "max_seq_len": ("max_length",),
    "n_ctx": ("max_length",),
    "seq_len": ("max_length",),
    "seq_length": ("max_length",),
    "sequence_length": ("max_length",),
    "d_ff": ("d_mlp",),
    "d_hidden": ("d_mlp",),
    "ffn_dim": ("d_mlp",),
    "intermediate_size": ("d_mlp",),
    "mlp_dim": ("d_mlp",),
    "dim": ("d_model",),
    "embed_dim": ("d_model",),
    "embedding_dim": ("d_model",),
    "hidden_dim": ("d_model",),
    "hidden_size": ("d_model",),
    "n_embd": ("d_model",),
    "width": ("d_model",),
    "depth": ("n_layers",),
    "layers": ("n_layers",),
    "n_layer": ("n_layers",),
    "num_hidden_layers": ("n_layers",),
    "num_layers": ("n_layers",),
    "heads": ("n_heads",),
    "n_head": ("n_heads",),
    "num_attention_heads": ("n_heads",),
    "num_heads": ("n_heads",),
    "n_head_kv": ("n_kv_heads",),
    "n_query_groups": ("n_kv_heads",),
    "num_key_value_heads": ("n_kv_heads",),
    "num_kv_heads": ("n_kv_heads",),
    "qk_layernorm": ("qk_norm",),
    "use_qk_norm": ("qk_norm",),
    "window_size": ("sliding_window",),
    "activation": ("mlp_activation",),
    "hidden_act": ("mlp_activation",),
    "final_logit_softcapping": ("logit_softcap",),
    "tie_word_embeddings": ("tied_embeddings",),
    "arch": ("base",),
    "architecture": ("base",),
    "model_type": ("base",),
    "dataset": ("sources", "data"),
    "datasets": ("sources", "data"),
    "train_data": ("sources",),
    "train_file": ("sources",),
    "val_data": ("valid_sources",),
    "validation_file": ("valid_sources",),
    "random_seed": ("seed",),
    "ckpt": ("checkpoint",),
    "run": ("workdir",),
    "run_dir": ("workdir",),
    "out_dir": ("workdir", "out"),
    "output_dir": ("workdir", "out"),
    "output": ("out", "to"),
    "input": ("from", "source"),
    "temp": ("temperature",),
    "max_tokens": ("max_new_tokens",),
    "n_samples": ("num_samples",),
    "num_return_sequences": ("num_samples",),
    "rep_penalty": ("repetition_penalty",),
    "stop_sequences": ("stop",),
}


def nearest(name: str, valid: Iterable[object]) -> str:
    """Text for the end of an error message that suggests a valid name; empty if none is similar.

    A name with the same last part comes first (lr, train.lr), then a name with a letter wrong, then one with the same
    meaning (learning_rate, train.lr), then the most similar one.
    """
    names = [str(v) for v in valid]
    leaf = _leaf(name)
    # Of three letters, one may be wrong, but not the first: gpt is not a misspelt ngt.
    likely = [valid for valid in names if len(leaf) > 3 or _leaf(valid)[:1] == leaf[:1]]
    ways = (
        _similar(name, _with_leaf(leaf, names), 0.0),
        _similar(name, names, 0.9),
        *(_similar(name, _with_leaf(other, names), 0.0) for other in _SYNONYMS.get(leaf, ())),
        _similar(name, likely, 0.6),
    )
    match = next(filter(None, ways), None)
    return f", did you mean {match}?" if match else ""


def _similar(name: str, names: list[str], cutoff: float) -> str | None:
    return next(iter(difflib.get_close_matches(name, names, n=1, cutoff=cutoff)), None)


def _with_leaf(leaf: str, names: list[str]) -> list[str]:
    return [name for name in names if _leaf(name) == leaf]


def _leaf(name: str) -> str:
    return name.lstrip("-").rpartition(".")[2].replace("-", "_")
