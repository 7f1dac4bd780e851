"""A language model small enough to train in a second, and its text."""

import json
import random

from psann_jax.config.io import default_config, parse

WORDS = (
    "the",
    "a",
    "sun",
    "moon",
    "sea",
    "wave",
    "river",
    "stone",
    "runs",
    "falls",
    "sings",
    "under",
    "over",
    "bright",
)


def sentences(n=200, seed=0):
    """Returns short random texts."""
    rng = random.Random(seed)
    return [" ".join(rng.choices(WORDS, k=rng.randint(3, 12))) for _ in range(n)]


def write_text(path, *, n_lines=400, seed=0):
    """Writes sentences to a file, one per line."""
    path.write_text("\n".join(sentences(n_lines, seed)) + "\n")
    return path


def write_parts(folder, n=4):
    """Writes files part-*.jsonl and valid.jsonl of sentences to a new folder, and returns it."""
    folder.mkdir(exist_ok=True)
    for i in range(n):
        lines = (json.dumps({"text": text}) + "\n" for text in sentences(60, seed=i))
        (folder / f"part-{i}.jsonl").write_text("".join(lines))
    (folder / "valid.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in sentences(40, seed=99)))
    return folder


def prepared(n=200, **options):
    """Returns sentences as data for the public API."""
    from psann_jax import psannLMDataPrep  # imported late: child processes of tests do not need the API

    return psannLMDataPrep(sentences(n), **{"tokenizer": "bytes", "max_length": 32, **options})


def tiny_config(tmp_path, **overrides):
    """Returns the config of a waveresnet; `overrides` are dotted names with __ for dots."""
    config = default_config("waveresnet")
    config.model.update(d_model=16, n_layers=2, n_heads=2, d_mlp=32, dropout=0.1)
    config.model.wave.interleave = True
    source = tmp_path / "text.txt"
    if not source.exists():
        write_text(source)
    config.data.update(sources=(str(source),), valid_fraction=0.1, max_length=32, cache_dir=str(tmp_path / "cache"))
    config.data.tokenizer.kind = "bytes"
    config.train.update(steps=8, batch_tokens=256, lr=1e-2, warmup_steps=2, precision="fp32", log_every=1)
    config.checkpoint.every = 3
    return parse_with(config, overrides)


def parse_with(config, overrides):
    """Returns the experiment of a config dict with overrides, dotted names with __ for dots."""
    with config.unlocked():
        for name, value in overrides.items():
            *parents, leaf = name.split("__")
            node = config
            for parent in parents:
                node = node[parent]
            node[leaf] = value
    return parse(config)
