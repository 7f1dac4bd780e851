"""A network compiled for decoding: reading prompts into a cache, and the loop that produces tokens from it."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from psann_jax.config import require
from psann_jax.models.network import Network, Params
from psann_jax.nn.mesh import ONE_DEVICE, make_mesh
from psann_jax.nn.partition import RULES, constrain, info_tree, param_shardings
from psann_jax.sample.next_token import next_token

SEGMENT = 32  # tokens a row that the compiled loop produces before the host looks at them
# Parameters that layers cast to the compute dtype where they use them; cast once, they need not be read in float32.
_CAST = ("matrix", "embedding", "bias")

State = dict[str, Any]
Control = dict[str, Any]


class Sampler:
    """One network on one mesh, and its compiled functions, kept for every shape seen.

    `psann_jax.sample.generation` makes texts with it.

    Attributes:
      vocab_size: ids are in [0, vocab_size).
      eos_id: the token that ends a text.
      max_length: tokens that the network is to see at once, its context.
      mesh: where it runs.
    """

    def __init__(
        self, network: Network, params: Params, *, eos_id: int, max_length: int, mesh: Mesh | None = None
    ) -> None:
        """Args:
        network: whose dtype is that of the computation and of the cache.
        params: of the network, on any devices; they are copied.
        eos_id: the token that ends a text.
        max_length: the context.
        mesh: of axes `MESH_AXES`; None: the first device.
        """
        self.vocab_size: int = network.config.vocab_size
        require(max_length >= 2, "max_length", f"is {max_length}, must be at least 2")
        require(0 <= eos_id < self.vocab_size, "eos_id", f"is {eos_id}, outside the {self.vocab_size} ids")
        self.eos_id, self.max_length, self.mesh = eos_id, max_length, mesh or make_mesh(ONE_DEVICE, all_devices=False)
        self._network = network
        module = nnx.eval_shape(self._unstacked, network.abstract)
        self._graphdef, abstract = nnx.split(module)
        self._infos = info_tree(abstract)
        self._given = param_shardings(self.mesh, network.abstract, network.infos)
        self._shardings = self._on_mesh(
            {"tokens": ("batch",), "counts": ("batch",), "seen": ("batch", None), "cache": module.cache_axes()}
        )
        cache, everywhere = self._shardings["cache"], NamedSharding(self.mesh, PartitionSpec())
        params_shardings = param_shardings(self.mesh, nnx.to_pure_dict(abstract), self._infos)
        self._cast = jax.jit(self._cast_once, out_shardings=params_shardings)
        self._init_cache = jax.jit(module.init_cache, static_argnums=(0, 1), out_shardings=cache)
        self._read = jax.jit(self._read_tokens, donate_argnums=1, out_shardings=cache)
        self._decode = jax.jit(self._decode_loop, donate_argnums=1, out_shardings=(self._shardings, everywhere))
        self.update(params)

    def update(self, params: Params) -> None:
        """Takes other parameters of the same network; nothing is compiled anew."""
        with jax.set_mesh(self.mesh):
            self._params = self._cast(jax.device_put(params, self._given))

    def rows_for(self, n: int) -> int:
        """Rows that are computed for n of them: a power of two, or the next multiple of the mesh's batch shards."""
        shards = self.mesh.shape["data"] * self.mesh.shape["fsdp"]
        return -(-power_of_two(n) // shards) * shards

    def init_state(self, tokens_B: np.ndarray, seen_BxV: np.ndarray, capacity: int) -> State:
        """The state of rows before anything is read.

        Args:
          tokens_B: int32, the last token of each row.
          seen_BxV: bool, the tokens of each row.
          capacity: tokens that the cache holds, of each row.

        Returns:
          tokens_B; counts_B, how many tokens of each row were produced; seen_BxV; the cache. The last token of a
          row is not in the cache yet.
        """
        small = {"tokens": tokens_B, "counts": np.zeros_like(tokens_B), "seen": seen_BxV}
        with jax.set_mesh(self.mesh):
            return {
                **jax.device_put(small, {name: self._shardings[name] for name in small}),
                "cache": self._init_cache(len(tokens_B), capacity),
            }

    def read(self, state: State, tokens_BxL: np.ndarray, counts_B: np.ndarray, fresh_B: np.ndarray) -> State:
        """Appends tokens to the cache. The state is donated.

        Args:
          state: as it is.
          tokens_BxL: int32.
          counts_B: int32; the first so many tokens of each row are meant, none for rows to be left alone.
          fresh_B: bool, rows whose cache is emptied first.
        """
        with jax.set_mesh(self.mesh):
            return {**state, "cache": self._read(self._params, state["cache"], tokens_BxL, counts_B, fresh_B)}

    def decode(self, state: State, control: Control, steps: int) -> tuple[State, dict[str, np.ndarray]]:
        """Produces tokens until so many steps are done or no row goes on. The state is donated.

        A row goes on while it is live and has room in the cache, until it produces eos_id or reaches the limit.

        Args:
          state: as it is.
          control: of numpy, live_B, bool; int32 capacity of the cache and limit of produced tokens; uint32 seed and
            streams_B; and the scalars of a Sampling. The random numbers of a row follow from seed, stream and how
            many tokens it has produced.
          steps: at most SEGMENT.

        Returns:
          The state; and tokens_BxT, vocab_size where the logits were not finite, -1 where nothing was produced, and
          logprobs_BxT, see `next_token`.
        """
        with jax.set_mesh(self.mesh):
            control = {**control, "eos": np.int32(self.eos_id)}
            state, out = self._decode(self._params, state, control, np.int32(min(steps, SEGMENT)))
        return state, jax.device_get(out)

    def _on_mesh(self, axes: Any) -> Any:
        """The shardings of arrays with these logical axes."""
        return jax.tree.map(
            lambda names: NamedSharding(self.mesh, RULES.spec(names)), axes, is_leaf=lambda a: isinstance(a, tuple)
        )

    # --- traced functions -----------------------------------------------------------------------------

    def _unstacked(self, params: Params) -> Any:
        model = self._network.merge(params)
        model.unstack()
        return model

    def _cast_once(self, params: Params) -> Params:
        model = self._unstacked(params)
        unstacked: Params = nnx.to_pure_dict(nnx.state(model))
        return jax.tree.map(lambda p, info: p.astype(model.dtype) if info.kind in _CAST else p, unstacked, self._infos)

    def _read_tokens(
        self, params: Params, cache: Any, tokens_BxL: jax.Array, counts_B: jax.Array, fresh_B: jax.Array
    ) -> Any:
        # No layer looks beyond a row's length, so there is nothing else to empty.
        cache = {**cache, "length": jnp.where(fresh_B, 0, cache["length"])}
        valid_BxL = jnp.arange(tokens_BxL.shape[1]) < counts_B[:, None]
        model = nnx.merge(self._graphdef, params)
        return model.hidden(tokens_BxL, valid_BxL.astype(jnp.int32), cache=cache)[1]

    def _decode_loop(self, params: Params, state: State, control: Control, steps: jax.Array) -> tuple[State, State]:
        model = nnx.merge(self._graphdef, params)
        shape = (state["tokens"].shape[0], SEGMENT)
        keys_B = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(control["seed"]), control["streams"])

        def running(state: State, live_B: jax.Array) -> jax.Array:
            return live_B & (state["cache"]["length"] < control["capacity"])

        def step(carry: tuple[Any, ...]) -> tuple[Any, ...]:
            index, live_B, state, out = carry
            runs_B = running(state, live_B)
            segment_ids_Bx1 = runs_B[:, None].astype(jnp.int32)
            x_Bx1xD, cache, _ = model.hidden(state["tokens"][:, None], segment_ids_Bx1, cache=state["cache"])
            logits_BxV = constrain(model.logits(x_Bx1xD[:, 0]), "batch", None)
            step_keys_B = jax.vmap(jax.random.fold_in)(keys_B, state["counts"])
            chosen_B, logprobs_B = next_token(logits_BxV, state["seen"], step_keys_B, control["sampling"])
            tokens_B = jnp.where(runs_B, chosen_B, state["tokens"])
            counts_B = state["counts"] + runs_B
            seen_BxV = state["seen"].at[jnp.arange(shape[0]), tokens_B].set(True, mode="drop")
            out = {
                "tokens": out["tokens"].at[:, index].set(jnp.where(runs_B, tokens_B, -1)),
                "logprobs": out["logprobs"].at[:, index].set(logprobs_B),
            }
            live_B &= (counts_B < control["limit"]) & ~(runs_B & (tokens_B == control["eos"]))
            return index + 1, live_B, {"cache": cache, "tokens": tokens_B, "counts": counts_B, "seen": seen_BxV}, out

        out = {"tokens": jnp.full(shape, -1, jnp.int32), "logprobs": jnp.zeros(shape, jnp.float32)}
        carry = (jnp.zeros((), jnp.int32), control["live"], state, out)
        *_, state, out = lax.while_loop(lambda c: (c[0] < steps) & jnp.any(running(c[2], c[1])), step, carry)
        return state, out


def power_of_two(n: int) -> int:
    """The least power of two that is not below n >= 1."""
    return 1 << (n - 1).bit_length()
