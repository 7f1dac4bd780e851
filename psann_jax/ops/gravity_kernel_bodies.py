"""What the kernels of gravity attention do with one pair of tiles."""

from functools import reduce
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax

from psann_jax.ops.dropout import column_word, keep_element, keep_probability, row_word
from psann_jax.ops.gravity_scores import GravityForm
from psann_jax.ops.gravity_tile import Pairs, Strengths, Tile, differentiate_tile, score_tile
from psann_jax.ops.tile_loop import Body, Index, Scalars, Side, Sums, Target
from psann_jax.ops.tiles import MASK_VALUE

_UNROLLED = 4  # coordinates; divides those of every padded token on GPUs


class Setup(NamedTuple):
    """Static facts about a kernel.

    Attributes:
      form: options of the score.
      target: what it is compiled for.
      coordinates: per head, without padding.
      has_mass: whether masses multiply the scores.
      has_dropout: whether weights are dropped.
    """

    form: GravityForm
    target: Target
    coordinates: int
    has_mass: bool
    has_dropout: bool


def forward(setup: Setup, head_size: int) -> Body:
    """Returns the forward pass, for query tiles: the values' mean (T, K) and the logsumexp of the scores (1, T).

    It reads "v" of the keys, and of both sides what `_tile` reads.
    """
    T = setup.target.T

    def step(queries: Side, keys: Side, scalars: Scalars, sums: Sums) -> Sums:
        largest, total, mean = sums
        s = _tile(setup, queries, keys, scalars, queries_fixed=True).s
        new_largest = jnp.maximum(largest, jnp.max(s, 1, keepdims=True))
        p = jnp.exp(s - new_largest)
        rescale = jnp.exp(largest - new_largest)
        total = total * rescale + jnp.sum(p, 1, keepdims=True)
        if setup.has_dropout:
            p *= _dropout_factors(setup, queries.positions(0), keys.positions(1), scalars)
        v = keys.values("v")
        return new_largest, total, mean * rescale + setup.target.dot(p.astype(v.dtype), v, (1, 0))

    def finish(queries: Side, sums: Sums) -> tuple[Array, Array]:
        largest, total, mean = sums
        return mean / total, (largest + jnp.log(total)).T

    return Body(step, finish, (((T, 1), MASK_VALUE), ((T, 1), 0.0), ((T, head_size), 0.0)))


def backward_of_queries(setup: Setup, padded_coordinates: int) -> Body:
    """Returns the part of the backward pass with a sum over the keys of each query.

    It reads "v" of the keys, "dout", "lse" and "delta" of the queries, and of both what `_tile` reads. Its results are
    the products of the gradients of the distances with the keys' coordinates, (C, T); and rows of sums over the keys
    of: the gradients of the distances; those of the scores without cutoff, times the key's mass and 1 / (d2 + eps);
    the same without 1 / (d2 + eps); and, if the cutoff is smooth, its gradients times the squared distances.
    """
    T, form = setup.target.T, setup.form

    def step(queries: Side, keys: Side, scalars: Scalars, sums: Sums) -> Sums:
        t = _tile(setup, queries, keys, scalars, queries_fixed=True)
        lse, delta = queries.column("lse"), queries.column("delta")
        p = jnp.exp(t.s - lse)
        dp = setup.target.dot(queries.values("dout"), keys.values("v"), (1, 1))
        if setup.has_dropout:
            dp *= _dropout_factors(setup, queries.positions(0), keys.positions(1), scalars)
        g = differentiate_tile(form, _strengths(scalars), t, p, dp - delta, lse)
        weighted = g.massed * keys.row("extra", 1) if setup.has_mass else g.massed
        per_pair = [g.d2, weighted * t.u, weighted]
        if g.cutoff is not None:
            per_pair.append(g.cutoff * t.d2)
        added = [jnp.sum(pair, 1, keepdims=True) for pair in per_pair]
        return _add(sums, setup.target.dot(g.d2, keys.rows("a"), (1, 1)), *added)

    def finish(queries: Side, sums: Sums) -> tuple[Array, tuple[Array, ...]]:
        return sums[0].T, tuple(column.T for column in sums[1:])

    columns = (((T, 1), 0.0),) * number_of_sums(form)
    return Body(step, finish, (((T, padded_coordinates), 0.0), *columns))


def number_of_sums(form: GravityForm) -> int:
    """Returns the number of rows of sums from `backward_of_queries`."""
    return 4 if form.cutoff in ("soft", "decay") else 3


def backward_of_keys(setup: Setup, padded_coordinates: int, head_size: int) -> Body:
    """Returns the part of the backward pass with a sum over the queries that see a key.

    It reads "v" of the keys, "dout", "lse" and "delta" of the queries, and of both what `_tile` reads. Its results are
    the gradient of the values, (T, K); the products of the gradients of the distances with the queries' coordinates,
    (C, T); and rows of sums over the queries: of the gradients of the distances and, if used, of the mass.
    """
    T, form = setup.target.T, setup.form

    def step(keys: Side, queries: Side, scalars: Scalars, sums: Sums) -> Sums:
        t = _tile(setup, keys, queries, scalars, queries_fixed=False)
        lse, delta, dout = queries.row("lse"), queries.row("delta"), queries.values("dout")
        p = dropped = jnp.exp(t.s - lse)
        dp = setup.target.dot(keys.values("v"), dout, (1, 1))
        if setup.has_dropout:
            factors = _dropout_factors(setup, queries.positions(1), keys.positions(0), scalars)
            dropped, dp = p * factors, dp * factors
        g = differentiate_tile(form, _strengths(scalars), t, p, dp - delta, lse)
        added = [setup.target.dot(dropped.astype(dout.dtype), dout, (1, 0))]
        added += [setup.target.dot(g.d2, queries.rows("a"), (1, 1)), jnp.sum(g.d2, 1, keepdims=True)]
        if setup.has_mass:
            added.append(jnp.sum(g.massed * t.base * queries.row("extra", 1), 1, keepdims=True))
        return _add(sums, *added)

    def finish(keys: Side, sums: Sums) -> tuple[Array, Array, tuple[Array, ...]]:
        return sums[0], sums[1].T, tuple(column.T for column in sums[2:])

    columns = (((T, 1), 0.0),) * (1 + setup.has_mass)
    return Body(step, finish, (((T, head_size), 0.0), ((T, padded_coordinates), 0.0), *columns))


def _add(sums: Sums, *added: Array) -> Sums:
    return tuple(total + new for total, new in zip(sums, added, strict=True))


def _strengths(scalars: Scalars) -> Strengths:
    return Strengths(*(scalars.get("params", index) for index in range(3)))


def _tile(setup: Setup, fixed: Side, looped: Side, scalars: Scalars, *, queries_fixed: bool) -> Tile:
    """Returns the scores of a pair of tiles, with the fixed one along the first axis.

    It reads of both sides the coordinates "a"; "extra", a token's score with itself and its mass; and "segments".
    """
    d2 = _squared_distances(setup, fixed, looped)
    lag = fixed.positions(0) - looped.positions(1)
    visible = lag >= 0 if queries_fixed else lag <= 0
    if "segments" in fixed:
        visible &= fixed.column("segments") == looped.row("segments")
    mass_product = fixed.column("extra", 1) * looped.row("extra", 1) if setup.has_mass else None
    pairs = Pairs(lag == 0, visible, fixed.column("extra", 0), mass_product)
    return score_tile(setup.form, _strengths(scalars), d2, pairs)


def _squared_distances(setup: Setup, fixed: Side, looped: Side) -> Array:
    def add(c: Index, d2: Array) -> Array:
        return d2 + jnp.square(fixed.column("a", c) - looped.row("a", c))

    zeros = jnp.zeros((setup.target.T, setup.target.T), jnp.float32)
    if setup.target.platform == "gpu":
        # Unrolled, all coordinates of the fixed tile would be kept in registers, of which there are not enough; one at
        # a time, each would wait for its numbers from memory. Coordinates of the padding are zero.
        def add_some(i: Index, d2: Array) -> Array:
            return reduce(lambda d2, c: add(_UNROLLED * i + c, d2), range(_UNROLLED), d2)

        return lax.fori_loop(0, -(-setup.coordinates // _UNROLLED), add_some, zeros)
    return reduce(lambda d2, c: add(c, d2), range(setup.coordinates), zeros)


def _dropout_factors(setup: Setup, query: Array, key: Array, scalars: Scalars) -> Array:
    first, second = scalars.get("words", 0), scalars.get("words", 1)
    return dropout_factors(setup.form.dropout_rate, query, key, first, second)


def dropout_factors(rate: float, query: Array, key: Array, first: Array, second: Array) -> Array:
    """Returns the factors of attention weights: 0 where dropped, 1 / (1 - rate) elsewhere.

    Args:
      rate: fraction to drop.
      query: positions of the queries, int32.
      key: positions of the keys, int32.
      first: a word of the row and head, see `psann_jax.ops.dropout.row_words`.
      second: the other one.
    """
    word = row_word(query.astype(jnp.uint32), (first, second))
    kept = keep_element(word, column_word(key.astype(jnp.uint32)), rate)
    return jnp.where(kept, jnp.float32(1 / keep_probability(rate)), 0)
