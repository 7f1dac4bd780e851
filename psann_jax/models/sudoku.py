"""The iterative transformer of the base sudoku.

Source of the architecture: the public study chenglou/sudoku-solver, reimplemented from its description.
"""

from collections.abc import Callable
from typing import Any, ClassVar, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx

from psann_jax.config.checks import require
from psann_jax.config.sudoku import SudokuConfig
from psann_jax.models.layered import Layered
from psann_jax.nn.attention import Attention, AttentionOptions
from psann_jax.nn.context import Context
from psann_jax.nn.initial import INITIALS
from psann_jax.nn.linear import Linear
from psann_jax.nn.mlp import MLP, MLPOptions
from psann_jax.nn.norm import LayerNorm
from psann_jax.nn.partition import constrain, param
from psann_jax.nn.positions import rope_tables_2d
from psann_jax.ops import kernels

_N_CELLS, _N_DIGITS = 81, 9

Grid = tuple[jax.Array, jax.Array]  # hidden states (B, 81, D) and predicted probabilities (B, 81, 9)
Read = TypeVar("Read")


def _linear(shape: tuple[int, int], axes: tuple[str | None, str | None], rngs: nnx.Rngs) -> Linear:
    """A layer for digits. Its kind is embedding, because Muon is for hidden matrices only."""
    return Linear(shape, axes, bias=True, kind="embedding", initial=INITIALS["reference"], rngs=rngs)


class SudokuBlock(nnx.Module):
    """A pre-norm block: x = x + attention(norm1(x)); x = x + mlp(norm2(x)). Every cell attends to all cells."""

    def __init__(self, config: SudokuConfig, dtype: jnp.dtype, *, rngs: nnx.Rngs):
        """Creates the layers; `dtype` is that of their matrix products."""
        self.dtype = dtype
        d, rate, initial = config.d_model, config.dropout, INITIALS["reference"]
        attention = AttentionOptions(d, config.n_heads, causal=False, bias=True, dropout=rate, output_dropout=rate)
        mlp = MLPOptions(d, config.d_mlp, config.mlp_activation, config.sine, dropout=rate, inner_dropout=rate)
        self.norm1 = LayerNorm(d, rngs=rngs)
        self.attn = Attention(attention, initial=initial, rngs=rngs)
        self.norm2 = LayerNorm(d, rngs=rngs)
        self.mlp = MLP(mlp, initial=initial, rngs=rngs)

    def __call__(self, x_BxLxD: jax.Array, context: Context, key: jax.Array | None) -> jax.Array:
        """Applies the block to the float32 residual stream (B, 81, D); `key` is for dropout."""
        keys = (None, None) if key is None else tuple(jax.random.split(key))
        x = x_BxLxD + self.attn(self.norm1(x_BxLxD).astype(self.dtype), context, None, keys[0])[0]
        return x + self.mlp(self.norm2(x).astype(self.dtype), keys[1])

    def attention(self, x_BxLxD: jax.Array, context: Context) -> jax.Array:
        """Computes the weights (B, H, 81, 81), of queries on keys, for the residual stream (B, 81, D)."""
        return self.attn.weights(self.norm1(x_BxLxD).astype(self.dtype), context)


class Sudoku(Layered):
    """Blocks that are applied `iterations` times to a grid, each time with the digits predicted so far as input.

    h = embed(clues), p = 0; then in every iteration h = blocks(h + feedback(p) [+ positions]), logits = head(h),
    p = softmax(logits). Matrix products are computed in `dtype`; the residual stream h is float32. Linear layers are
    initialised uniformly in +-1/sqrt(fan_in) and positions normally; unlike in the original, the layers of the
    additive variant are not initialised as copies of one.
    """

    REMATS: ClassVar[tuple[str, ...]] = ("none", "block", "iteration", "nested")
    UNROLLED_ON_TPU = 0  # within the loop over iterations, unrolled layers take 15 minutes and more to compile

    def __init__(
        self,
        config: SudokuConfig,
        *,
        dtype: jnp.dtype = jnp.float32,
        remat: str = "none",
        scan_layers: bool | None = None,
        sequence: bool = False,
        rngs: nnx.Rngs,
    ):
        """Creates the float32 parameters.

        Args:
          config: sizes and options.
          dtype: of the matrix products.
          remat: what the backward pass recomputes: none, block (keeps the inputs of all blocks in all iterations),
            iteration (keeps the input of each iteration) or nested (also keeps the input of each block while an
            iteration is recomputed).
          scan_layers: see `Layered`.
          sequence: must be False, because a grid is too short to be sharded.
          rngs: with a `params` stream.

        Raises:
          ConfigError: another remat, or sequence.
        """
        known = self.REMATS
        require(remat in known, "train.remat", f"is {remat!r}, must be one of {', '.join(known)} with base sudoku")
        require(not sequence, "mesh.sequence", "has no effect with base sudoku; leave it at False")
        self.config, self.remat_iterations = config, remat in ("iteration", "nested")
        d = config.d_model
        self.embed = _linear((1 + _N_DIGITS, d), (None, "embed"), rngs)
        self.feedback = _linear((_N_DIGITS, d), (None, "embed"), rngs)
        super().__init__(
            lambda rngs: SudokuBlock(config, jnp.dtype(dtype), rngs=rngs),
            config.n_layers,
            dtype=dtype,
            remat="block" if remat in ("block", "nested") else "none",
            scan_layers=scan_layers,
            rngs=rngs,
        )
        additive = config.positional_encoding == "additive"
        self.row, self.column, self.box = (
            param(rngs, jax.random.normal, (9, d), "embedding", (None, "embed")) if additive else None for _ in range(3)
        )
        self.head = _linear((d, _N_DIGITS), ("embed", None), rngs)

    def start(self, puzzles_Bx81: jax.Array) -> Grid:
        """Returns the state before the first iteration, from digits 0 (empty) to 9 of any integer dtype."""
        clues = jax.nn.one_hot(puzzles_Bx81, 1 + _N_DIGITS, dtype=self.dtype)
        wide = jnp.promote_types(self.dtype, jnp.float32)
        return self.embed(clues).astype(wide), jnp.zeros((*puzzles_Bx81.shape, _N_DIGITS), wide)

    def iterate(self, grid: Grid, dropout_key: jax.Array | None = None) -> tuple[Grid, jax.Array]:
        """Runs one iteration.

        Args:
          grid: from `start` or an earlier call.
          dropout_key: enables dropout.

        Returns:
          The new state and the logits (B, 81, 9) of the digits 1 to 9, float32.
        """
        h, context = self._enter(grid), self._context()

        def step(block: SudokuBlock, x: jax.Array, index: jax.Array) -> jax.Array:
            key = None if dropout_key is None else jax.random.fold_in(dropout_key, index)
            return constrain(block(x, context, key), "batch", None, None)

        h = self.run_blocks(h, step)
        logits = self.logits(h.astype(self.dtype))
        return (h, jax.nn.softmax(logits)), logits

    def attention(self, grid: Grid) -> jax.Array:
        """Computes the attention weights (layers, B, H, 81, 81), of queries on keys, in the iteration after a state."""
        h, context, weights = self._enter(grid), self._context(), []
        with kernels.using(self.config.kernels):
            for block in self.block_list():
                weights.append(block.attention(h, context))
                h = block(h, context, None)
        return jnp.stack(weights)

    def run(
        self,
        puzzles_Bx81: jax.Array,
        read: Callable[[jax.Array], Read],
        *,
        iterations: int | None = None,
        dropout_key: jax.Array | None = None,
    ) -> Read:
        """Runs all iterations and returns read(logits_Bx81x9) of each, stacked along a leading axis T.

        Args:
          puzzles_Bx81: digits, 0 for empty cells.
          read: reduces the logits. It runs inside the loop, so that the logits of all iterations never exist at once.
          iterations: T; None: as in training.
          dropout_key: enables dropout.
        """

        def body(grid: Grid, index: jax.Array) -> tuple[Grid, Read]:
            grid, logits = self.iterate(grid, None if dropout_key is None else jax.random.fold_in(dropout_key, index))
            return grid, read(logits)

        one: Any = jax.checkpoint(body, prevent_cse=False) if self.remat_iterations else body
        steps = jnp.arange(self.config.iterations if iterations is None else iterations)
        result: Read = jax.lax.scan(one, self.start(puzzles_Bx81), steps)[1]
        return result

    def head_kernel(self) -> tuple[jax.Array, jax.Array | None]:
        """See `Layered`; the kernel is (D, 9)."""
        assert self.head.bias is not None
        return self.head.kernel[...], self.head.bias[...]

    def _enter(self, grid: Grid) -> jax.Array:
        """Input of the first block, (B, 81, D)."""
        h, p = grid
        h = h + self.feedback(p.astype(self.dtype)) + self._positions(h.dtype)
        return constrain(h, "batch", None, None)

    def _context(self) -> Context:
        cell, rope = jnp.arange(_N_CELLS), None
        if self.config.positional_encoding == "rope2d":
            row, column = jnp.divmod(cell, 9)
            rope = rope_tables_2d(row, column, self.config.d_model // self.config.n_heads, self.dtype)
        return Context(None, cell[None], rope=rope)

    def _positions(self, dtype: jnp.dtype) -> jax.Array | float:
        """Position embeddings of the additive variant, (81, D)."""
        if self.row is None or self.column is None or self.box is None:
            return 0.0
        row, column = jnp.divmod(jnp.arange(_N_CELLS), 9)
        parts = ((self.row, row), (self.column, column), (self.box, 3 * (row // 3) + column // 3))
        return sum((table[...].astype(dtype)[index] for table, index in parts), jnp.zeros((), dtype))


def empty_cell_sums(
    logits_Bx81x9: jax.Array, puzzles_Bx81: jax.Array, solutions_Bx81: jax.Array
) -> dict[str, jax.Array]:
    """Sums over the empty cells: nll (cross entropy in nats) and correct of the batch, and nll_B of each puzzle."""
    empty = puzzles_Bx81 == 0
    target_Bx81 = solutions_Bx81.astype(jnp.int32) - 1
    log_p = jax.nn.log_softmax(logits_Bx81x9)
    nll_Bx81 = -jnp.take_along_axis(log_p, target_Bx81[..., None], axis=-1)[..., 0]
    right_Bx81 = filled(logits_Bx81x9, puzzles_Bx81) == solutions_Bx81
    return {
        "nll": jnp.sum(nll_Bx81, where=empty),
        "nll_B": jnp.sum(nll_Bx81, axis=-1, where=empty),
        "correct": jnp.sum(right_Bx81, where=empty, dtype=jnp.float32),
    }


def filled(logits_Bx81x9: jax.Array, puzzles_Bx81: jax.Array) -> jax.Array:
    """Fills every empty cell with the most probable digit; the result has the dtype of the puzzles."""
    best_Bx81 = 1 + jnp.argmax(logits_Bx81x9, axis=-1)
    return jnp.where(puzzles_Bx81 == 0, best_Bx81.astype(puzzles_Bx81.dtype), puzzles_Bx81)
