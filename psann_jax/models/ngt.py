"""The Newton Gravity Transformer: attention by the distance of coordinates that each layer updates."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from psann_jax.config import NGTConfig
from psann_jax.models.text_network import Cache
from psann_jax.models.vanilla import TiedHead, mlp_options
from psann_jax.nn.context import Context, LayerCache, make_context
from psann_jax.nn.gravity import GravityAttention, GravityOptions, Masses, repulsion
from psann_jax.nn.initial import INITIALS, normal
from psann_jax.nn.linear import Linear
from psann_jax.nn.mlp import MLP
from psann_jax.nn.norm import LayerNorm
from psann_jax.nn.partition import param
from psann_jax.ops import kernels
from psann_jax.ops.gravity_attention import choose_gravity
from psann_jax.ops.gravity_kernel import GravityCase
from psann_jax.ops.gravity_scores import GravityForm
from psann_jax.ops.tiles import window_visible

Stream = tuple[jax.Array, jax.Array]


def _attention_options(config: NGTConfig) -> GravityOptions:
    attractive = config.variant == "attractive"
    return GravityOptions(
        d_model=config.d_model,
        n_heads=config.n_heads,
        d_coord=config.d_coord,
        d_head_coord=config.d_head_coord,
        form=GravityForm(
            attractive=attractive,
            cutoff=config.cutoff,
            eps=config.eps or (0.1 if attractive else 1e-6),
            rsqrt=config.rsqrt,
        ),
        mass=config.mass,
        radius_init=config.radius_init,
        dropout=config.dropout,
        implementation=config.attention,
    )


class NGTBlock(nnx.Module):
    """Gravity attention and an MLP on the residual stream x; the output of the attention updates the coordinates z.

    o = attention(norm1(x), z); x = x + o; x = x + mlp(norm2(x)); z = coord_norm(z + next(o))
    """

    def __init__(self, config: NGTConfig, *, rngs: nnx.Rngs):
        d, c, initial = config.d_model, config.d_coord, INITIALS[config.init]
        self.norm1 = LayerNorm(d, rngs=rngs)
        self.attn = GravityAttention(_attention_options(config), initial=initial, rngs=rngs)
        self.norm2 = LayerNorm(d, rngs=rngs)
        self.mlp = MLP(mlp_options(config), initial=initial, rngs=rngs)
        evolves, axes = config.coordinate_evolution, ("embed", None)
        self.next = Linear((d, c), axes, bias=True, kind="coordinate", initial=initial, rngs=rngs) if evolves else None
        self.coord_norm = LayerNorm(c, rngs=rngs) if evolves else None

    def __call__(
        self,
        stream: Stream,
        masses: Masses,
        context: Context,
        cache: LayerCache | None,
        key: jax.Array | None,
    ) -> tuple[Stream, LayerCache]:
        """Applies the block.

        Args:
          stream: x (B, L, D) and z (B, L, C).
          masses: of the tokens.
          context: shared arrays.
          cache: this layer's entries, or None.
          key: for dropout, or None.

        Returns:
          The stream and the layer's new cache.
        """
        x_BxLxD, z_BxLxC = stream
        keys = (None, None) if key is None else tuple(jax.random.split(key))
        o_BxLxD, updated = self.attn(context.whole(self.norm1(x_BxLxD)), z_BxLxC, masses, context, cache, keys[0])
        x_BxLxD = x_BxLxD + context.split(o_BxLxD)
        x_BxLxD = x_BxLxD + context.split(self.mlp(context.whole(self.norm2(x_BxLxD)), keys[1]))
        if self.next is not None and self.coord_norm is not None:
            z_BxLxC = self.coord_norm(z_BxLxC + self.next(o_BxLxD.astype(z_BxLxC.dtype)))
        return (x_BxLxD, z_BxLxC), updated


class NGT(TiedHead):
    """Embedding, gravity blocks, a final norm and a tied head. The coordinates encode the positions."""

    config: NGTConfig

    def __init__(self, config: NGTConfig, *, rngs: nnx.Rngs, **options: Any):
        """Creates the float32 parameters; `options` are those of `Layered`."""
        masses = INITIALS[config.init].embedding
        self.mass = param(rngs, masses, (config.vocab_size, 1), "table", ("vocab", None))
        # The scale that `coord_norm` gives the coordinates of all later layers.
        self.coords = param(rngs, normal(1.0), (config.n_positions, config.d_coord), "table", ("positions", None))
        super().__init__(config, lambda rngs: NGTBlock(config, rngs=rngs), rngs=rngs, **options)

    @staticmethod
    def live_attention(config: NGTConfig, *, dtype: Any, has_segment_ids: bool, length: int) -> str:
        """See `TextNetwork`."""
        case = GravityCase(
            replace(_attention_options(config).form, dropout_rate=config.dropout),
            jnp.dtype(dtype).name,
            config.d_model // config.n_heads,
            config.d_head_coord,
            has_mass=config.mass == "score",
            has_segment_ids=has_segment_ids,
        )
        return choose_gravity(config.attention, case)

    def hidden(
        self,
        tokens_BxL: jax.Array,
        segment_ids_BxL: jax.Array | None = None,
        positions_BxL: jax.Array | None = None,
        cache: Cache | None = None,
        *,
        dropout_key: jax.Array | None = None,
    ) -> tuple[jax.Array, Cache | None, dict[str, jax.Array]]:
        """Applies the network up to the final norm; see `TextNetwork`.

        Returns:
          Hidden states; the cache; and, without a cache, "coordinates" (B, L, C) after the last block and "mass"
          (B, L).
        """
        stream, masses, context = self._begin(tokens_BxL, segment_ids_BxL, positions_BxL, cache)
        if cache is not None:
            updated: Cache = {"length": cache["length"] + context.valid_B, "layers": []}
            if "mass" in cache:
                updated["mass"] = masses.cached_BxS
            for block, entry in zip(self.block_list(), cache["layers"], strict=True):
                stream, entry = block(stream, masses, context, entry, None)
                updated["layers"].append(entry)
            return self.norm(stream[0]), updated, {}

        def step(block: NGTBlock, stream: Stream, index: jax.Array) -> Stream:
            key = None if dropout_key is None else jax.random.fold_in(dropout_key, index)
            (x, z), _ = block(stream, masses, context, None, key)
            return context.split(x), z

        x_BxLxD, z_BxLxC = self.run_blocks(stream, step)
        return context.whole(self.norm(x_BxLxD)), None, {"coordinates": z_BxLxC, "mass": masses.tokens_BxL}

    def extra_loss(
        self,
        aux: dict[str, jax.Array],
        segment_ids_BxL: jax.Array | None,
        weight_B: jax.Array,
        key: jax.Array,
        step: jax.Array,
    ) -> jax.Array:
        """See `TextNetwork`: the repulsion of the last coordinates, in every `interval`-th update."""
        config = self.config.repulsion
        if not config.weight:
            return jnp.zeros(())
        rows_B = repulsion(aux["coordinates"], aux["mass"], segment_ids_BxL, config, key)
        return jnp.where(step % config.interval == 0, config.weight * jnp.sum(rows_B * weight_B), 0.0)

    def init_cache(self, batch: int, length: int) -> Cache:
        """See `TextNetwork`."""
        c, wide = self.config, jnp.promote_types(self.dtype, jnp.float32)
        a, v = ((batch, c.n_heads, length, size) for size in (c.d_head_coord, c.d_model // c.n_heads))
        layers = [{"a": jnp.zeros(a, wide), "v": jnp.zeros(v, self.dtype)} for _ in range(c.n_layers)]
        cache: Cache = {"length": jnp.zeros((batch,), jnp.int32), "layers": layers}
        if c.mass == "score":
            cache["mass"] = jnp.zeros((batch, length), wide)
        return cache

    def cache_axes(self) -> Cache:
        """See `TextNetwork`."""
        entry = dict.fromkeys(("a", "v"), ("batch", "heads", None, None))
        axes: Cache = {"length": ("batch",), "layers": [entry] * self.config.n_layers}
        return axes | ({"mass": ("batch", None)} if self.config.mass == "score" else {})

    def inspect(
        self, tokens_BxL: jax.Array, segment_ids_BxL: jax.Array | None = None, positions_BxL: jax.Array | None = None
    ) -> dict[str, jax.Array]:
        """Returns the internals of all layers on a window.

        Returns:
          mass (B, L); for N layers: coordinates (N + 1, B, L, C), before the first and after each layer; weights and
          squared distances d2, each (N, B, H, L, L); gamma (N, H) and radius (N,).
        """
        stream, masses, context = self._begin(tokens_BxL, segment_ids_BxL, positions_BxL, None)
        coordinates, layers = [stream[1]], []
        with kernels.using(self.config.kernels):
            for block in self.block_list():
                weights, d2 = block.attn.weights(block.norm1(stream[0]), stream[1], masses, context)
                gamma, _, radius = block.attn.strengths()
                layers.append({"weights": weights, "d2": d2, "gamma": gamma, "radius": radius})
                stream, _ = block(stream, masses, context, None, None)
                coordinates.append(stream[1])
        stacked = {name: jnp.stack([layer[name] for layer in layers]) for name in layers[0]}
        return stacked | {"coordinates": jnp.stack(coordinates), "mass": masses.tokens_BxL}

    def statistics(
        self, tokens_BxL: jax.Array, segment_ids_BxL: jax.Array | None, positions_BxL: jax.Array | None
    ) -> dict[str, jax.Array]:
        """Computes means over heads and visible pairs or tokens, for each layer.

        Returns:
          For layer i, with the suffix "/layer_i": gamma; radius; distance, and attended_distance, weighted by
          attention; entropy of the weights of a token, in nats; sparsity, the fraction of the visible tokens whose
          weight is less than a hundredth of the uniform weight.
        """
        seen = self.inspect(tokens_BxL, segment_ids_BxL, positions_BxL)
        _, visible = window_visible(tokens_BxL.shape[1], segment_ids_BxL)
        if segment_ids_BxL is not None:
            visible &= (segment_ids_BxL > 0)[:, None, :, None]
        weights, distance = seen["weights"], jnp.sqrt(seen["d2"])
        visible = jnp.broadcast_to(visible, weights.shape[1:])
        n_seen, n_pairs = jnp.sum(visible, axis=-1), jnp.sum(visible)
        n_rows = jnp.sum(n_seen > 0)
        inside = jnp.where(visible, weights, 0)
        pairs, heads = (1, 2, 3, 4), 1
        by_layer = {
            "gamma": jnp.mean(seen["gamma"], axis=heads),
            "radius": seen["radius"],
            "distance": jnp.sum(jnp.where(visible, distance, 0), axis=pairs) / n_pairs,
            "attended_distance": jnp.sum(inside * distance, axis=pairs) / n_rows,
            "entropy": -jnp.sum(jax.scipy.special.xlogy(inside, inside), axis=pairs) / n_rows,
            "sparsity": jnp.sum(visible & (weights * n_seen[..., None] < 0.01), axis=pairs) / n_pairs,
        }
        return {f"{name}/layer_{i}": x[i] for name, x in by_layer.items() for i in range(self.n_layers)}

    def _begin(
        self,
        tokens_BxL: jax.Array,
        segment_ids_BxL: jax.Array | None,
        positions_BxL: jax.Array | None,
        cache: Cache | None,
    ) -> tuple[Stream, Masses, Context]:
        """Returns the input of the first block, and the masses and context that all blocks share."""
        context = make_context(tokens_BxL, segment_ids_BxL, None if cache is None else cache["length"])
        context = replace(context, sequence=self.sequence and cache is None)
        positions = context.reach_BxL if positions_BxL is None else positions_BxL
        wide = jnp.promote_types(self.dtype, jnp.float32)
        z_BxLxC = self.coords[...].astype(wide)[positions]
        mass_BxL = jax.nn.softplus(self.mass[...].astype(wide))[tokens_BxL, 0]
        cached = None
        if cache is not None and "mass" in cache:
            row = jnp.arange(tokens_BxL.shape[0])[:, None]
            cached = cache["mass"].at[row, context.slots_BxL].set(mass_BxL, mode="drop")
        x_BxLxD = context.split(self.embedded(tokens_BxL))
        return (x_BxLxD, z_BxLxC), Masses(mass_BxL, cached), context
