"""Language modelling: a decoder, its cross entropy, and batches of text."""

import dataclasses
import math
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from psann_jax.config import Config, require
from psann_jax.data.loader import TextData, load_text
from psann_jax.models.network import NETWORKS, Network, Params, build
from psann_jax.nn.partition import constrain
from psann_jax.ops.cross_entropy import cross_entropy
from psann_jax.train.mesh import WHOLE, Share, check_heads, check_window
from psann_jax.train.metrics import perplexity
from psann_jax.train.step import Batch, Stats

_INSPECTED_ROWS = 4
DTYPES = {"fp32": jnp.float32, "bf16": jnp.bfloat16, "fp16": jnp.float16}


class LanguageModel:
    """Next-token prediction on text.

    Attributes:
      network: the model.
      data: the text.
    """

    def __init__(self, config: Config, data: TextData):
        """Builds the network for a text.

        Raises:
          ConfigError: the vocabulary of the model is not the tokenizer's.
        """
        asked, found = config.model.vocab_size, data.tokenizer.vocab_size
        require(
            asked in (0, found),
            "model.vocab_size",
            f"is {asked}, but the tokenizer has {found} tokens; leave it at 0 to take the tokenizer's",
        )
        self.config, self.data = config, data
        self.network = make_network(config, found)

    @classmethod
    def load(cls, config: Config, *, progress: bool = True) -> "LanguageModel":
        """Prepares the text of the config, or finds it prepared, and builds the network."""
        return cls(config, load_text(config.data, progress=progress and jax.process_index() == 0))

    def describe(self) -> dict[str, object]:
        """Facts for the header of a run."""
        lines = (line.split(maxsplit=1) for line in self.data.describe().splitlines())
        return {**dict(lines), "attention": self.attention()}

    def attention(self) -> str:
        """The attention implementation that training will use."""
        name: str = NETWORKS[type(self.config.model)].live_attention(
            self.config.model,
            platform=jax.default_backend(),
            dtype=DTYPES[self.config.train.precision],
            has_segment_ids=self.config.data.document_mask,
        )
        return name

    # --- what the training step needs -----------------------------------------------------------------

    def weight(self, batch: Batch) -> jax.Array:
        """Number of targets in a batch: tokens whose predecessor in the window is of the same document."""
        return jnp.sum(_target_weights(batch))

    def loss(self, params: Params, batch: Batch, key: jax.Array | None, step: jax.Array) -> tuple[jax.Array, Stats]:
        """Sum of the cross entropy over the targets of a batch.

        Args:
          params: of `network`.
          batch: tokens, segments and positions, each (B, L + 1).
          key: for dropout; None switches it, label smoothing, z-loss and what the network adds to the loss off, as
            evaluation wants.
          step: updates done so far.

        Returns:
          The loss with label smoothing, z-loss and what the network adds, and the sums nll (without them), correct and
          weight.
        """
        model, train = self.network.merge(params), self.config.train
        # Without a mask, one segment reaches through the window and attention may take its fastest form.
        segment_ids = batch["segment_ids"][:, :-1] if self.config.data.document_mask else None
        x, _, aux = model.hidden(batch["tokens"][:, :-1], segment_ids, batch["positions"][:, :-1], dropout_key=key)
        kernel, bias = model.head_kernel()
        kernel = constrain(kernel, "embed", "vocab")  # also where it is not stored so, see `ShardingRules.stored`
        training, weights = key is not None, _target_weights(batch)
        loss, stats = cross_entropy(
            x,
            kernel,
            batch["tokens"][:, 1:],
            weights,
            bias_V=bias,
            label_smoothing=train.label_smoothing if training else 0.0,
            z_loss=train.z_loss if training else 0.0,
        )
        if key is not None:
            loss += model.extra_loss(aux, segment_ids, jnp.sum(weights, axis=1), jax.random.fold_in(key, 1), step)
        return loss, stats

    def statistics(self, params: Params, batch: Batch) -> Stats:
        """What the network tells of its layers, on the first windows of a batch; {} if nothing."""
        names = ("tokens", "segment_ids", "positions")
        tokens, segment_ids, positions = (batch[name][:_INSPECTED_ROWS, :-1] for name in names)
        masked = segment_ids if self.config.data.document_mask else None
        return self.network.merge(params).statistics(tokens, masked, positions)

    def check_mesh(self, mesh: jax.sharding.Mesh) -> None:
        """Raises ConfigError if heads or the window cannot be divided over the mesh."""
        check_heads(mesh, self.config.model.n_heads)
        if self.config.mesh.sequence:
            check_window(mesh, self.config.data.max_length)

    # --- data -----------------------------------------------------------------------------------------

    def batch_shapes(self, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes of a global batch of that many windows."""
        shape = (batch_size, self.config.data.max_length + 1)
        return {name: jax.ShapeDtypeStruct(shape, jnp.int32) for name in ("tokens", "segment_ids", "positions")}

    def train_batches(self, start_step: int, share: Share = WHOLE) -> Iterator[dict[str, np.ndarray]]:
        """A process's rows of the batches from a step on, without end."""
        return self.data.train_batches(
            seed=self.config.seed,
            batch_size=self.config.batch_size,
            start_step=start_step,
            process_index=share.index,
            process_count=share.count,
        )

    def valid_batches(self, batch_size: int, share: Share = WHOLE) -> Iterator[dict[str, np.ndarray]]:
        """A process's rows of the fixed validation batches, in order."""
        return self.data.valid_batches(
            batch_size=batch_size,
            max_tokens=self.config.eval.max_tokens,
            process_index=share.index,
            process_count=share.count,
        )

    def fingerprint(self) -> str:
        """Changes with the text, its division and the tokenizer."""
        return self.data.fingerprint

    def tokenizer_bytes(self) -> bytes:
        """The tokenizer file."""
        return self.data.tokenizer.to_bytes()

    def phases(self) -> dict[int, str]:
        """None: all steps draw from the same text."""
        return {}

    def summarise(self, sums: dict[str, float]) -> dict[str, float]:
        """Evaluation results from the sums over all batches: loss, ppl, accuracy, bits_per_byte, tokens."""
        loss = sums["nll"] / sums["weight"]
        return {
            "loss": loss,
            "ppl": perplexity(loss),
            "accuracy": sums["correct"] / sums["weight"],
            "bits_per_byte": loss / math.log(2) / self.data.bytes_per_token,
            "tokens": sums["weight"],
        }


def make_network(config: Config, vocab_size: int) -> Network:
    """The network of a config; makes no arrays."""
    sizes = {"vocab_size": vocab_size}
    if getattr(config.model, "n_positions", None) == 0:
        sizes["n_positions"] = config.data.max_length
    return build(
        dataclasses.replace(config.model, **sizes),
        dtype=jnp.dtype(DTYPES[config.train.precision]),
        remat=config.train.remat,
        scan_layers=config.train.scan_layers,
        sequence=config.mesh.sequence,
    )


def _target_weights(batch: Batch) -> jax.Array:
    """1 where a token is predicted by the one before it, 0 at padding and at the start of a document."""
    segment_ids = batch["segment_ids"]
    return ((segment_ids[:, 1:] == segment_ids[:, :-1]) & (segment_ids[:, 1:] > 0)).astype(jnp.float32)
