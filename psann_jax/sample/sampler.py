"""A network compiled for decoding: prefill of the cache, and the loop that generates tokens from it."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from psann_jax.config import require
from psann_jax.models.network import Network, Params
from psann_jax.nn.mesh import ONE_DEVICE, make_mesh, without_context
from psann_jax.nn.partition import RULES, ParamInfo, constrain, info_tree, param_shardings
from psann_jax.ops import kernels
from psann_jax.sample.next_token import alternatives, next_token, score

MAX_STEPS = 32  # tokens per row that one call of the compiled loop generates
# Parameters that layers cast to the compute dtype on use; casting them once saves reading them in float32 every step.
_CAST_KINDS = ("matrix", "mixing", "embedding", "bias")

State = dict[str, Any]
Control = dict[str, Any]


class Sampler:
    """One network on one mesh, with its compiled functions cached by shape.

    `psann_jax.sample.generation` generates texts with it.

    Attributes:
      vocab_size: ids are in [0, vocab_size).
      eos_id: the token that ends a text.
      max_length: the context length in tokens.
      mesh: the devices it runs on.
      n_alternatives: number of most probable tokens that `decode` can return for each position.
      has_adjustments: whether rows can have a `psann_jax.sample.settings.Adjustment`.
    """

    def __init__(
        self,
        network: Network,
        params: Params | None,
        *,
        eos_id: int,
        max_length: int,
        mesh: Mesh | None = None,
        n_alternatives: int = 0,
        has_adjustments: bool = False,
    ) -> None:
        """Places the parameters on the mesh; nothing is compiled before the first use.

        Args:
          network: its dtype is used for the computation and the cache.
          params: the network's parameters on any devices; they are copied. None: only `lower` can be used.
          eos_id: the token that ends a text.
          max_length: the context length in tokens, at least 2.
          mesh: a mesh from `psann_jax.nn.mesh.make_mesh`; None uses the first device.
          n_alternatives: see above; at most the size of the vocabulary.
          has_adjustments: see above.

        Raises:
          ConfigError: max_length or eos_id is out of range.
        """
        self.vocab_size: int = network.config.vocab_size
        require(max_length >= 2, "max_length", f"is {max_length}, must be at least 2")
        require(0 <= eos_id < self.vocab_size, "eos_id", f"is {eos_id}, outside the {self.vocab_size} ids")
        self.eos_id, self.max_length = eos_id, max_length
        self.mesh = without_context(mesh or make_mesh(ONE_DEVICE, all_devices=False))
        self._network, self.n_alternatives = network, min(n_alternatives, self.vocab_size)
        self.has_adjustments = has_adjustments
        module = nnx.eval_shape(self._unstacked, network.abstract)
        self._graphdef, abstract = nnx.split(module)
        self._infos = info_tree(abstract)
        self._stacked_shardings = param_shardings(self.mesh, network.abstract, network.infos)
        axes = {"tokens": ("batch",), "counts": ("batch",), "seen": ("batch", None), "cache": module.cache_axes()}
        axes |= {"bias": ("batch", None), "sampled": ("batch", None)} if has_adjustments else {}
        self._shardings = self._on_mesh(axes)
        cache, everywhere = self._shardings["cache"], NamedSharding(self.mesh, PartitionSpec())
        params_shardings = param_shardings(self.mesh, nnx.to_pure_dict(abstract), self._infos)
        self._cast = jax.jit(self._cast_once, out_shardings=params_shardings)
        self._init_cache = jax.jit(module.init_cache, static_argnums=(0, 1), out_shardings=cache)
        self._prefill = jax.jit(self._prefill_cache, donate_argnums=1, out_shardings=cache)
        self._score = jax.jit(self._prefill_and_score, donate_argnums=1, out_shardings=(cache, everywhere))
        self._decode = jax.jit(self._decode_loop, donate_argnums=1, out_shardings=(self._shardings, everywhere))
        self._join = jax.jit(_replace_row, donate_argnums=0, out_shardings=self._shardings)
        if params is not None:
            self.update(params)

    def update(self, params: Params) -> None:
        """Replaces the parameters by others of the same network, without recompilation."""
        with jax.set_mesh(self.mesh):
            self._params = self._cast(jax.device_put(params, self._stacked_shardings))

    def release(self) -> None:
        """Frees the parameters; `update` sets them again."""
        self._params = None

    @property
    def nbytes(self) -> int:
        """Bytes of the parameters."""
        return sum(array.nbytes for array in jax.tree.leaves(self._params))

    def rows_for(self, n: int) -> int:
        """Rounds a number of rows up to a power of two and to a multiple of the mesh's batch shards."""
        shards = self.mesh.shape["data"] * self.mesh.shape["fsdp"]
        return -(-power_of_two(n) // shards) * shards

    def init_state(
        self, tokens_B: np.ndarray, seen_BxV: np.ndarray, capacity: int, bias_BxV: np.ndarray | None = None
    ) -> State:
        """Returns the decoding state with an empty cache.

        Args:
          tokens_B: int32, the last token of each row's prompt.
          seen_BxV: bool, the tokens that occur in each row's prompt.
          capacity: tokens per row that the cache can hold.
          bias_BxV: float32, what is added to the logits; None: nothing. With has_adjustments only.

        Returns:
          A dict: "tokens" (B,), the last token of each row, which the cache does not hold yet; "counts" (B,), the
          numbers of tokens generated; "seen" (B, V); and "cache". With has_adjustments also "bias" (B, V) and "sampled"
          (B, V), how often each token has been generated.
        """
        small = {"tokens": tokens_B, "counts": np.zeros_like(tokens_B), "seen": seen_BxV}
        if self.has_adjustments:
            small["bias"] = np.zeros(seen_BxV.shape, np.float32) if bias_BxV is None else bias_BxV
            small["sampled"] = np.zeros(seen_BxV.shape, np.int32)
        with jax.set_mesh(self.mesh):
            return {
                **jax.device_put(small, {name: self._shardings[name] for name in small}),
                "cache": self._init_cache(len(tokens_B), capacity),
            }

    def prefill(self, state: State, tokens_BxL: np.ndarray, counts_B: np.ndarray, reset_B: np.ndarray) -> State:
        """Appends tokens to the cache.

        Args:
          state: the decoding state, donated.
          tokens_BxL: int32, padded at the end.
          counts_B: int32, the number of tokens to append to each row, 0 for rows that stay unchanged.
          reset_B: bool, rows whose cache is emptied first.
        """
        with jax.set_mesh(self.mesh):
            return {**state, "cache": self._prefill(self._params, state["cache"], tokens_BxL, counts_B, reset_B)}

    def score(
        self, state: State, tokens_1xL: np.ndarray, next_1xL: np.ndarray, n_tokens: int
    ) -> tuple[State, dict[str, np.ndarray]]:
        """Appends tokens to the cache of one row, and scores the token after each. Needs n_alternatives.

        Args:
          state: the decoding state of one row, donated.
          tokens_1xL: int32, padded at the end.
          next_1xL: int32, the token that follows each.
          n_tokens: number of tokens to append.

        Returns:
          The new state, and a dict: "logprobs" (n_tokens,), NaN where the logits are not finite; "top_tokens" and
          "top_logprobs" (n_tokens, n_alternatives), see `next_token.alternatives`.
        """
        with jax.set_mesh(self.mesh):
            counts_1 = np.array([n_tokens], np.int32)
            cache, out = self._score(self._params, state["cache"], tokens_1xL, next_1xL, counts_1)
        return {**state, "cache": cache}, {name: array[:n_tokens] for name, array in jax.device_get(out).items()}

    def join(self, state: State, row: State, index: int) -> State:
        """Replaces one row of the decoding state, donated, by the only row of another one of the same capacity."""
        with jax.set_mesh(self.mesh):
            return self._join(state, row, np.int32(index))

    def decode(self, state: State, control: Control, steps: int) -> tuple[State, dict[str, np.ndarray]]:
        """Generates up to `steps` tokens per row.

        A row continues while it is active and has room in the cache, until it generates eos_id or reaches the limit.

        Args:
          state: the decoding state, donated.
          control: numpy values: "active" (B,) bool; "capacity" of the cache and "limit" of generated tokens, int32;
            "seed" and "streams" (B,), uint32; and "sampling", `Sampling.scalars()`. A row's random numbers depend on
            the seed, its stream and the number of tokens it has generated. The limit, the seed and the fields of
            "sampling" are one number or one for every row. With n_alternatives also "explained" (B,), bool: the rows
            whose alternatives are wanted. With has_adjustments also "adjusted" (B,), bool: the rows that have one, and
            "presence_penalty" and "frequency_penalty" (B,), float32.
          steps: at most MAX_STEPS.

        Returns:
          The new state, and a dict: "tokens" (B, T), with vocab_size where the logits are not finite and -1 where no
          token was generated; "logprobs" (B, T), see `next_token`; and with n_alternatives also "top_tokens" and
          "top_logprobs" (B, T, n_alternatives), see `next_token.alternatives`.
        """
        with jax.set_mesh(self.mesh):
            control = {**control, "eos": np.int32(self.eos_id)}
            state, out = self._decode(self._params, state, control, np.int32(min(steps, MAX_STEPS)))
        return state, jax.device_get(out)

    def lower(self, rows: int, length: int, capacity: int, sampling: Any) -> dict[str, jax.stages.Lowered]:
        """Returns the programs "prefill" and "decode" for the mesh's devices, to be compiled, without running them.

        Args:
          rows: batch size.
          length: tokens per row that one prefill appends.
          capacity: tokens per row that the cache can hold.
          sampling: `Sampling.scalars()`.
        """
        shape = jax.ShapeDtypeStruct
        numbers, flags, streams = (shape((rows,), dtype) for dtype in (jnp.int32, jnp.bool_, jnp.uint32))
        control = {"active": flags, "capacity": np.int32(capacity), "limit": np.int32(capacity), "sampling": sampling}
        control |= {"seed": np.uint32(0), "streams": streams, "eos": np.int32(self.eos_id)}
        with jax.set_mesh(self.mesh):
            params = jax.eval_shape(self._cast, self._network.abstract)
            state = {
                "tokens": numbers,
                "counts": numbers,
                "seen": shape((rows, self.vocab_size), jnp.bool_),
                "cache": jax.eval_shape(lambda: self._init_cache(rows, capacity)),
            }
            state = jax.tree.map(lambda a, s: shape(a.shape, a.dtype, sharding=s), state, self._shardings)
            prompt = shape((rows, length), jnp.int32)
            return {
                "prefill": self._prefill.lower(params, state["cache"], prompt, numbers, flags),
                "decode": self._decode.lower(params, state, control, np.int32(MAX_STEPS)),
            }

    def _on_mesh(self, axes: Any) -> Any:
        """Returns the shardings of arrays with these logical axes."""
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

        def cast(param: jax.Array, info: ParamInfo) -> jax.Array:
            return param.astype(model.dtype) if info.kind in _CAST_KINDS else param

        return jax.tree.map(cast, unstacked, self._infos)

    def _prefill_cache(
        self, params: Params, cache: Any, tokens_BxL: jax.Array, counts_B: jax.Array, reset_B: jax.Array
    ) -> Any:
        # No layer reads beyond a row's length, so resetting the length empties the cache.
        cache = {**cache, "length": jnp.where(reset_B, 0, cache["length"])}
        model = nnx.merge(self._graphdef, params)
        with kernels.using(self._network.config.kernels):
            return model.hidden(tokens_BxL, _segment_ids(tokens_BxL, counts_B), cache=cache)[1]

    def _prefill_and_score(
        self, params: Params, cache: Any, tokens_1xL: jax.Array, next_1xL: jax.Array, counts_1: jax.Array
    ) -> tuple[Any, dict[str, jax.Array]]:
        model = nnx.merge(self._graphdef, params)
        with kernels.using(self._network.config.kernels):
            x_1xLxD, cache, _ = model.hidden(tokens_1xL, _segment_ids(tokens_1xL, counts_1), cache=cache)
            found = score(model.logits(x_1xLxD[0]), next_1xL[0], self.n_alternatives)
        return cache, dict(zip(("logprobs", "top_tokens", "top_logprobs"), found, strict=True))

    def _decode_loop(self, params: Params, state: State, control: Control, steps: jax.Array) -> tuple[State, State]:
        model = nnx.merge(self._graphdef, params)
        shape = (state["tokens"].shape[0], MAX_STEPS)
        seeds_B = jnp.broadcast_to(control["seed"], control["streams"].shape)
        keys_B = jax.vmap(lambda seed, stream: jax.random.fold_in(jax.random.key(seed), stream))(
            seeds_B, control["streams"]
        )

        def running(state: State, active_B: jax.Array) -> jax.Array:
            return active_B & (state["cache"]["length"] < control["capacity"])

        def step(carry: tuple[Any, ...]) -> tuple[Any, ...]:
            index, active_B, state, out = carry
            runs_B = running(state, active_B)
            segment_ids_Bx1 = runs_B[:, None].astype(jnp.int32)
            x_Bx1xD, cache, _ = model.hidden(state["tokens"][:, None], segment_ids_Bx1, cache=state["cache"])
            logits_BxV = constrain(model.logits(x_Bx1xD[:, 0]), "batch", None)
            step_keys_B = jax.vmap(jax.random.fold_in)(keys_B, state["counts"])
            adjust = functools.partial(_adjusted, state, control) if self.has_adjustments else None
            chosen_B, logprobs_B = next_token(logits_BxV, state["seen"], step_keys_B, control["sampling"], adjust)
            tokens_B = jnp.where(runs_B, chosen_B, state["tokens"])
            counts_B = state["counts"] + runs_B
            seen_BxV = state["seen"].at[jnp.arange(shape[0]), tokens_B].set(True, mode="drop")
            new = {"tokens": jnp.where(runs_B, tokens_B, -1), "logprobs": logprobs_B}
            if self.n_alternatives:
                new |= self._explain(logits_BxV, runs_B & control["explained"])
            out = {name: array.at[:, index].set(new[name]) for name, array in out.items()}
            active_B &= (counts_B < control["limit"]) & ~(runs_B & (tokens_B == control["eos"]))
            state = {**state, "cache": cache, "tokens": tokens_B, "counts": counts_B, "seen": seen_BxV}
            if self.has_adjustments:
                row = jnp.arange(shape[0])
                state["sampled"] = state["sampled"].at[row, tokens_B].add(runs_B.astype(jnp.int32), mode="drop")
            return index + 1, active_B, state, out

        out = {"tokens": jnp.full(shape, -1, jnp.int32), "logprobs": jnp.zeros(shape, jnp.float32)}
        if self.n_alternatives:
            top = (*shape, self.n_alternatives)
            out |= {"top_tokens": jnp.zeros(top, jnp.int32), "top_logprobs": jnp.zeros(top, jnp.float32)}
        carry = (jnp.zeros((), jnp.int32), control["active"], state, out)
        with kernels.using(self._network.config.kernels):
            *_, state, out = lax.while_loop(lambda c: (c[0] < steps) & jnp.any(running(c[2], c[1])), step, carry)
        return state, out

    def _explain(self, logits_BxV: jax.Array, wanted_B: jax.Array) -> dict[str, jax.Array]:
        """Returns the alternatives of all rows if any row wants them, else zeros."""
        shape = (len(wanted_B), self.n_alternatives)
        tokens, logprobs = lax.cond(
            jnp.any(wanted_B),
            lambda: alternatives(logits_BxV, self.n_alternatives),
            lambda: (jnp.zeros(shape, jnp.int32), jnp.zeros(shape, jnp.float32)),
        )
        return {"top_tokens": tokens, "top_logprobs": logprobs}


def _segment_ids(tokens_BxL: jax.Array, counts_B: jax.Array) -> jax.Array:
    """1 for the first tokens of each row, 0 for the padding behind them."""
    return (jnp.arange(tokens_BxL.shape[1]) < counts_B[:, None]).astype(jnp.int32)


def _adjusted(state: State, control: Control, scores_BxV: jax.Array) -> jax.Array:
    """Applies the bias and the penalties of all rows if any row has some; those of the others are 0."""

    def adjust() -> jax.Array:
        presence_Bx1, frequency_Bx1 = (control[f"{name}_penalty"][:, None] for name in ("presence", "frequency"))
        sampled_BxV = state["sampled"]
        penalty_BxV = frequency_Bx1 * sampled_BxV + jnp.where(sampled_BxV > 0, presence_Bx1, 0)
        return scores_BxV + (state["bias"] - penalty_BxV)

    return lax.cond(jnp.any(control["adjusted"]), adjust, lambda: scores_BxV)


def _replace_row(state: State, row: State, index: jax.Array) -> State:
    """The rows are the first axis of every array."""
    return jax.tree.map(lambda all_rows, one: all_rows.at[index].set(one[0].astype(all_rows.dtype)), state, row)


def power_of_two(n: int) -> int:
    """Rounds n >= 1 up to a power of two."""
    return 1 << (n - 1).bit_length()
