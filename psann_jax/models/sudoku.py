"""The iterative transformer behind the base sudoku.

Source of the architecture: the public study chenglou/sudoku-solver, rebuilt from its description.
"""

import math
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx

from psann_jax.config.checks import require
from psann_jax.config.sudoku import SudokuConfig
from psann_jax.models.layered import Layered
from psann_jax.nn.initial import INITIALS
from psann_jax.nn.linear import Linear
from psann_jax.nn.mlp import make_activation
from psann_jax.nn.norm import LayerNorm
from psann_jax.nn.partition import constrain, param
from psann_jax.nn.positions import rope_tables_2d, rotate
from psann_jax.ops.dropout import dropout

REMAT = ("none", "iteration", "nested")
_N_CELLS, _N_DIGITS = 81, 9

Grid = tuple[jax.Array, jax.Array]  # hidden states (B, 81, D) and predicted probabilities (B, 81, 9)
Read = TypeVar("Read")


def _linear(
    shape: tuple[int, int], axes: tuple[str | None, str | None], rngs: nnx.Rngs, kind: str = "matrix"
) -> Linear:
    return Linear(shape, axes, bias=True, kind=kind, initial=INITIALS["reference"], rngs=rngs)


class SudokuBlock(nnx.Module):
    """One pre-norm block: x + drop(o(attention(norm1(x)))), then x + drop(fc2(drop(act(fc1(norm2(x))))))."""

    def __init__(self, config: SudokuConfig, dtype: jnp.dtype, *, rngs: nnx.Rngs):
        """Args: config; dtype of the products; rngs."""
        self.config, self.dtype = config, dtype
        d, f = config.d_model, config.d_mlp
        self.norm1 = LayerNorm(d, rngs=rngs)
        self.q, self.k, self.v = (_linear((d, d), ("embed", "heads"), rngs) for _ in range(3))
        self.o = _linear((d, d), ("heads", "embed"), rngs)
        self.norm2 = LayerNorm(d, rngs=rngs)
        self.fc1 = _linear((d, f), ("embed", "mlp"), rngs)
        self.fc2 = _linear((f, d), ("mlp", "embed"), rngs)
        self.act = make_activation(config.mlp_activation, f, config.sine, "mlp", rngs=rngs)

    def __call__(
        self, x_BxLxD: jax.Array, rope: tuple[jax.Array, jax.Array] | None, key: jax.Array | None
    ) -> jax.Array:
        """Runs the block on the residual stream (B, 81, D); `key` is for dropout."""
        rate = self.config.dropout
        keys = (None,) * 4 if key is None else tuple(jax.random.split(key, 4))
        attended = self._attend(self.norm1(x_BxLxD).astype(self.dtype), rope, keys[0])
        x = x_BxLxD + dropout(self.o(attended), rate, keys[1])
        hidden = self.act(self.fc1(self.norm2(x).astype(self.dtype)))
        return x + dropout(self.fc2(dropout(hidden, rate, keys[2])), rate, keys[3])

    def _attend(self, x_BxLxD: jax.Array, rope: tuple[jax.Array, jax.Array] | None, key: jax.Array | None) -> jax.Array:
        weights = dropout(self._weights(x_BxLxD, rope).astype(self.dtype), self.config.dropout, key)
        return jnp.einsum("bhlm,bmhk->blhk", weights, self._heads(self.v, x_BxLxD)).reshape(x_BxLxD.shape)

    def attention(self, x_BxLxD: jax.Array, rope: tuple[jax.Array, jax.Array] | None) -> jax.Array:
        """The weights (B, H, 81, 81), of queries on keys, that the block gives the residual stream (B, 81, D)."""
        return self._weights(self.norm1(x_BxLxD).astype(self.dtype), rope)

    def _weights(self, x_BxLxD: jax.Array, rope: tuple[jax.Array, jax.Array] | None) -> jax.Array:
        q, k = self._heads(self.q, x_BxLxD), self._heads(self.k, x_BxLxD)
        if rope is not None:
            q, k = rotate(q, rope), rotate(k, rope)
        wide = jnp.promote_types(self.dtype, jnp.float32)
        scores = jnp.einsum("blhk,bmhk->bhlm", q / math.sqrt(q.shape[-1]), k, preferred_element_type=wide)
        return jax.nn.softmax(scores)

    def _heads(self, project: Linear, x_BxLxD: jax.Array) -> jax.Array:
        heads = project(x_BxLxD).reshape(*x_BxLxD.shape[:2], self.config.n_heads, -1)
        return constrain(heads, "batch", None, "heads", None)


class Sudoku(Layered):
    """Blocks that run `iterations` times over a grid, each time fed with the digits predicted so far.

    h = embed(clues), p = 0; then in every iteration h = blocks(h + feedback(p) [+ positions]), logits = head(h),
    p = softmax(logits). Products are in `dtype`; the residual stream h is float32 throughout. Linear layers start
    uniform in +-1/sqrt(fan_in), positions normal; unlike in the original, the layers of the additive variant do not
    start as copies of one.
    """

    def __init__(
        self,
        config: SudokuConfig,
        *,
        dtype: jnp.dtype = jnp.float32,
        remat: str = "none",
        scan_layers: bool = True,
        sequence: bool = False,
        rngs: nnx.Rngs,
    ):
        """Makes the initial parameters, in float32.

        Args:
          config: sizes and options.
          dtype: of the products.
          remat: what the backward pass recomputes: none, iteration (keeps what enters an iteration) or nested (that,
            and while an iteration is recomputed, what enters its blocks).
          scan_layers: see `Layered`.
          sequence: is refused, a grid is too short to be split.
          rngs: with a `params` stream.

        Raises:
          ConfigError: another remat, or sequence.
        """
        require(remat in REMAT, "train.remat", f"is {remat!r}, must be one of {', '.join(REMAT)} with base sudoku")
        require(not sequence, "mesh.sequence", "has no effect with base sudoku; leave it at False")
        self.config, self.remat_iterations = config, remat != "none"
        d = config.d_model
        # Digits in and out are no hidden matrices, which is what Muon is for.
        self.embed = _linear((1 + _N_DIGITS, d), (None, "embed"), rngs, "embedding")
        self.feedback = _linear((_N_DIGITS, d), (None, "embed"), rngs, "embedding")
        super().__init__(
            lambda rngs: SudokuBlock(config, jnp.dtype(dtype), rngs=rngs),
            config.n_layers,
            dtype=dtype,
            remat="block" if remat == "nested" else "none",
            scan_layers=scan_layers,
            rngs=rngs,
        )
        additive = config.positional_encoding == "additive"
        self.row, self.column, self.box = (
            param(rngs, jax.random.normal, (9, d), "embedding", (None, "embed")) if additive else None for _ in range(3)
        )
        self.head = _linear((d, _N_DIGITS), ("embed", None), rngs, "embedding")

    def start(self, puzzles_Bx81: jax.Array) -> Grid:
        """The state before the first iteration, from digits 0 (empty) to 9 of any integer type."""
        clues = jax.nn.one_hot(puzzles_Bx81, 1 + _N_DIGITS, dtype=self.dtype)
        wide = jnp.promote_types(self.dtype, jnp.float32)
        return self.embed(clues).astype(wide), jnp.zeros((*puzzles_Bx81.shape, _N_DIGITS), wide)

    def iterate(self, grid: Grid, dropout_key: jax.Array | None = None) -> tuple[Grid, jax.Array]:
        """One iteration.

        Args:
          grid: from `start` or an earlier call.
          dropout_key: switches dropout on.

        Returns:
          The new state and the logits (B, 81, 9) of the digits 1 to 9, float32.
        """
        h, rope = self._enter(grid), self._rope()

        def step(block: SudokuBlock, x: jax.Array, index: jax.Array) -> jax.Array:
            key = None if dropout_key is None else jax.random.fold_in(dropout_key, index)
            return constrain(block(x, rope, key), "batch", None, None)

        h = self.run_blocks(h, step)
        logits = self.logits(h.astype(self.dtype))
        return (h, jax.nn.softmax(logits)), logits

    def attention(self, grid: Grid) -> jax.Array:
        """The attention weights (layers, B, H, 81, 81), of queries on keys, in the iteration that follows a state."""
        h, rope, weights = self._enter(grid), self._rope(), []
        for block in self.block_list():
            weights.append(block.attention(h, rope))
            h = block(h, rope, None)
        return jnp.stack(weights)

    def run(
        self,
        puzzles_Bx81: jax.Array,
        read: Callable[[jax.Array], Read],
        *,
        iterations: int | None = None,
        dropout_key: jax.Array | None = None,
    ) -> Read:
        """read(logits_Bx81x9) of every iteration, stacked along a leading axis T.

        Args:
          puzzles_Bx81: digits, 0 for empty cells.
          read: keeps what is wanted of the logits; it runs inside the loop, so that a loss needs no logits of all
            iterations at once.
          iterations: T; None: as in training.
          dropout_key: switches dropout on.
        """

        def body(grid: Grid, index: jax.Array) -> tuple[Grid, Read]:
            grid, logits = self.iterate(grid, None if dropout_key is None else jax.random.fold_in(dropout_key, index))
            return grid, read(logits)

        one: Any = jax.checkpoint(body, prevent_cse=False) if self.remat_iterations else body
        steps = jnp.arange(self.config.iterations if iterations is None else iterations)
        result: Read = jax.lax.scan(one, self.start(puzzles_Bx81), steps)[1]
        return result

    def head_kernel(self) -> tuple[jax.Array, jax.Array | None]:
        """The (D, 9) kernel that maps hidden states to logits, and its bias (9,)."""
        assert self.head.bias is not None
        return self.head.kernel[...], self.head.bias[...]

    def _enter(self, grid: Grid) -> jax.Array:
        """What the blocks see of a state, (B, 81, D)."""
        h, p = grid
        h = h + self.feedback(p.astype(self.dtype)) + self._positions(h.dtype)
        return constrain(h, "batch", None, None)

    def _rope(self) -> tuple[jax.Array, jax.Array] | None:
        if self.config.positional_encoding != "rope2d":
            return None
        row, column = jnp.divmod(jnp.arange(_N_CELLS), 9)
        return rope_tables_2d(row, column, self.config.d_model // self.config.n_heads, self.dtype)

    def _positions(self, dtype: jnp.dtype) -> jax.Array | float:
        """What the additive variant adds to every cell, (81, D)."""
        if self.row is None or self.column is None or self.box is None:
            return 0.0
        row, column = jnp.divmod(jnp.arange(_N_CELLS), 9)
        parts = ((self.row, row), (self.column, column), (self.box, 3 * (row // 3) + column // 3))
        return sum((table[...].astype(dtype)[index] for table, index in parts), jnp.zeros((), dtype))


def empty_cell_sums(
    logits_Bx81x9: jax.Array, puzzles_Bx81: jax.Array, solutions_Bx81: jax.Array
) -> dict[str, jax.Array]:
    """Sums over the empty cells of a batch: nll (cross entropy, nats) and correct."""
    holes = puzzles_Bx81 == 0
    target_Bx81 = solutions_Bx81.astype(jnp.int32) - 1
    log_p = jax.nn.log_softmax(logits_Bx81x9)
    nll_Bx81 = -jnp.take_along_axis(log_p, target_Bx81[..., None], axis=-1)[..., 0]
    right_Bx81 = filled(logits_Bx81x9, puzzles_Bx81) == solutions_Bx81
    return {
        "nll": jnp.sum(nll_Bx81, where=holes),
        "correct": jnp.sum(right_Bx81, where=holes, dtype=jnp.float32),
    }


def filled(logits_Bx81x9: jax.Array, puzzles_Bx81: jax.Array) -> jax.Array:
    """The puzzles with the most probable digit in every empty cell, in the type of the puzzles."""
    best_Bx81 = 1 + jnp.argmax(logits_Bx81x9, axis=-1)
    return jnp.where(puzzles_Bx81 == 0, best_Bx81.astype(puzzles_Bx81.dtype), puzzles_Bx81)
