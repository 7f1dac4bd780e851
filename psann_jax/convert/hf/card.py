"""The model card of a folder for `transformers`."""

import math
from pathlib import PurePath

from psann_jax.config import TextModelConfig
from psann_jax.convert.weights import Weights

_STANDARD = "`transformers` has this architecture; no code of this folder is run."
_OWN = (
    "`transformers` does not have this architecture. `trust_remote_code=True` runs the PyTorch code in this folder, "
    "which has no dropout and supports the dynamic cache only."
)


def model_card(weights: Weights, model: TextModelConfig, name: str, origin: str, *, is_standard: bool) -> str:
    """Returns the content of README.md.

    Args:
      weights: of the model.
      model: its config with resolved presets.
      name: of the folder.
      origin: where the weights come from.
      is_standard: whether `transformers` has the architecture.
    """
    trust = "" if is_standard else ", trust_remote_code=True"
    config, training = weights.config, weights.training
    rows = {
        "base": model.base,
        "parameters": f"{weights.network().n_params:,}",
        "layers, features, heads": f"{model.n_layers}, {model.d_model}, {model.n_heads}",
        "vocabulary": f"{model.vocab_size:,} tokens",
        "context in training": f"{config.data.max_length} tokens",
        "converted from": f"`{_public(origin)}`" + ("" if training is None else f", update {training.step:,}"),
    }
    if training is not None:
        rows |= {
            "tokens per update": f"{config.train.batch_tokens:,}",
            "training data": ", ".join(map(_public, config.data.train_names)),
            "fingerprint of the data": f"`{training.data}`",
            "validation loss": _loss(training.val_loss),
        }
    table = "\n".join(f"| {key} | {value} |" for key, value in rows.items())
    return f"""---
library_name: transformers
pipeline_tag: text-generation
license: unknown
---

# {name}

A language model of the base `{model.base}`, trained with psann_jax. {_STANDARD if is_standard else _OWN}

| | |
|---|---|
{table}

## Use

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{name}"{trust})
model = AutoModelForCausalLM.from_pretrained("{name}"{trust})
inputs = tokenizer("Once upon a time", return_tensors="pt")
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=50)[0], skip_special_tokens=True))
```

## Limits

- The model continues text like that of its training data. It has not been tuned to follow instructions, and its output
  has not been checked for truth, bias or harm.
- It was trained on windows of {config.data.max_length} tokens. Longer texts were not seen in training.
- A text begins with the bos token, which the tokenizer adds.

## Licence

Unknown: whoever publishes the weights must state it here and above, and check that of the training data.
"""


def _public(source: str) -> str:
    """Returns the name of a file or folder without its place on this machine; other sources as they are."""
    path = PurePath(source.rpartition(":")[2])
    return path.name if path.is_absolute() or ":" not in source else source


def _loss(loss: float | None) -> str:
    if loss is None:
        return "not measured at this update"
    return f"{loss:.4f} nats per token, perplexity {math.exp(min(loss, 700)):.2f}"
