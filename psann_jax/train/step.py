"""The training state and the jitted functions that update and evaluate it."""

from dataclasses import dataclass
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding

from psann_jax.config import TrainConfig
from psann_jax.models.network import Network, Params
from psann_jax.nn.partition import param_shardings
from psann_jax.train.compatibility import check_compatible
from psann_jax.train.mesh import replicated
from psann_jax.train.optimizers import ascend, clip_by_global_norm, make_optimizer, optimizer_shardings
from psann_jax.train.schedules import learning_rate

ROLLING_STEPS = 25
_INITIAL_SCALE = 2.0**15  # of fp16 losses; doubled after _GROWTH_STEPS good updates, halved after a bad one
_GROWTH_STEPS = 1000
_SAM_KEY = 2**31 - 1  # folded into the key of an update's second gradient (train.sam_rho); above any micro-batch index

State = dict[str, Any]
Batch = dict[str, jax.Array]
Stats = dict[str, jax.Array]


class Objective(Protocol):
    """What the training step needs from a task. All results are sums over the batch, never means."""

    network: Network

    def weight(self, batch: Batch) -> jax.Array:
        """Returns the number of targets in the batch (scalar float32)."""

    def loss(self, params: Params, batch: Batch, key: jax.Array | None, step: jax.Array) -> tuple[jax.Array, Stats]:
        """Returns the summed loss (scalar float32) and the sums nll, correct and weight.

        Dropout is active if a key is given.
        """

    def statistics(self, params: Params, batch: Batch) -> Stats:
        """Returns scalars to log with each evaluation; may be empty."""


@dataclass(frozen=True)
class StateSpec:
    """Shapes and shardings of the training state.

    The state is one nested dict with the entries

    - params, opt_state, and ema_params if train.ema_decay is set;
    - step: number of updates, skipped ones included;
    - bad_steps: non-finite updates in a row; skipped_steps: all non-finite updates;
    - loss_scale, good_steps: dynamic loss scaling in fp16;
    - recent_loss: the last `ROLLING_STEPS` losses.

    All random numbers and all batches are functions of the seed and the step, so nothing else is needed to resume.

    Attributes:
      abstract: the state with `jax.ShapeDtypeStruct` leaves.
      shardings: the state with `NamedSharding` leaves.
    """

    abstract: State
    shardings: State

    def with_shardings(self) -> State:
        """Returns abstract arrays that carry their shardings, for restoring a checkpoint."""
        return jax.tree.map(
            lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), self.abstract, self.shardings
        )


def _first_state(network: Network, config: TrainConfig, params: Params) -> State:
    ema_params = {"ema_params": jax.tree.map(jnp.copy, params)} if config.ema_decay else {}
    return ema_params | {
        "params": params,
        "opt_state": make_optimizer(config, network.infos, 0.0).init(params),
        "step": jnp.zeros((), jnp.int32),
        "bad_steps": jnp.zeros((), jnp.int32),
        "skipped_steps": jnp.zeros((), jnp.int32),
        "loss_scale": jnp.asarray(_INITIAL_SCALE if config.precision == "fp16" else 1.0, jnp.float32),
        "good_steps": jnp.zeros((), jnp.int32),
        "recent_loss": jnp.full((ROLLING_STEPS,), jnp.nan, jnp.float32),
    }


def state_spec(network: Network, config: TrainConfig, mesh: Mesh) -> StateSpec:
    """Returns shapes and shardings of the state on a mesh, without creating arrays."""
    abstract = jax.eval_shape(lambda params: _first_state(network, config, params), network.abstract)
    shardings = jax.tree.map(lambda _: replicated(mesh), abstract)
    shardings["params"] = param_shardings(mesh, abstract["params"], network.infos)
    if config.ema_decay:
        shardings["ema_params"] = shardings["params"]
    # Left to jit, the moments would be replicated and the step compiled twice.
    shardings["opt_state"] = optimizer_shardings(
        make_optimizer(config, network.infos, 0.0), abstract["params"], shardings["params"], replicated(mesh)
    )
    return StateSpec(abstract, shardings)


def init_state(
    network: Network, config: TrainConfig, spec: StateSpec, seed: int, initial_params: Params | None = None
) -> State:
    """Returns the state before the first update, created on the mesh with its shardings; the same on every mesh.

    Args:
      network: the model.
      config: the training section.
      spec: from `state_spec`.
      seed: of the parameters, if they are not given.
      initial_params: parameters, a nested dict of host or device arrays, the same in all processes. The state holds
        copies.

    Raises:
      UserError: `initial_params` do not have the shapes and types of the network.
    """
    if initial_params is None:
        make = jax.jit(lambda key: _first_state(network, config, network.init(key)), out_shardings=spec.shardings)
        state: State = make(jax.random.key(seed))
        return state
    check_compatible(initial_params, spec.abstract["params"], "initial_params")
    placed = jax.device_put(initial_params, spec.shardings["params"])
    # An output that is an unchanged input would share its buffer, which the training step donates.
    copy = jax.jit(
        lambda params: _first_state(network, config, jax.tree.map(jnp.copy, params)), out_shardings=spec.shardings
    )
    copied: State = copy(placed)
    return copied


def make_statistics_step(objective: Objective, spec: StateSpec, batch: NamedSharding) -> Any:
    """Returns the jitted function (params, batch) -> scalars of `Objective.statistics`."""
    shardings = (spec.shardings["params"], batch)
    return jax.jit(objective.statistics, in_shardings=shardings, out_shardings=replicated(batch.mesh))


def make_train_step(objective: Objective, config: TrainConfig, spec: StateSpec, batch: NamedSharding, seed: int) -> Any:
    """Returns the jitted function (state, batch) -> (state, metrics); the state is donated.

    An update whose loss or gradients are not finite changes only the counters. The metrics are scalars:

    - loss (mean cross entropy in nats, without label smoothing and z-loss), objective (with both) and accuracy, at the
      parameters before the update;
    - grad_norm: L2 norm of the gradients before clipping;
    - lr, ppl_avg25 (mean perplexity of the last 25 steps), bad_steps, skipped_steps and, in fp16, loss_scale.
    """
    infos = objective.network.infos

    def train_step(state: State, batch: Batch) -> tuple[State, Stats]:
        key = jax.random.fold_in(jax.random.key(seed), state["step"])
        inverse_scale = 1.0 / state["loss_scale"]
        total = jnp.maximum(objective.weight(batch), 1.0)

        def gradients(params: Params, key: jax.Array) -> tuple[Params, jax.Array, Stats]:
            scale = state["loss_scale"] / total
            grads, *sums = _gradients(objective, config, params, state["step"], batch, key, scale)
            return jax.tree.map(lambda g: g * inverse_scale, grads), *sums

        grads, objective_sum, stats = gradients(state["params"], key)
        if config.sam_rho:
            uphill = ascend(state["params"], grads, config.sam_rho, infos)
            grads = gradients(uphill, jax.random.fold_in(key, _SAM_KEY))[0]
        grads, norm = clip_by_global_norm(grads, config.grad_clip, infos)
        lr = learning_rate(state["step"], config)
        updates, opt_state = make_optimizer(config, infos, lr).update(grads, state["opt_state"], state["params"])
        loss = stats["nll"] / total
        good = jnp.isfinite(objective_sum) & jnp.isfinite(norm)
        changed = {"params": optax.apply_updates(state["params"], updates), "opt_state": opt_state}
        if config.ema_decay:
            changed["ema_params"] = optax.incremental_update(
                changed["params"], state["ema_params"], 1 - config.ema_decay
            )
        unchanged = {name: state[name] for name in changed}
        new_state = jax.tree.map(lambda new, old: jnp.where(good, new, old), changed, unchanged)
        new_state |= _counters(state, good, loss, config)
        ppl = jnp.exp(new_state["recent_loss"])
        metrics = {
            "loss": loss,
            "objective": objective_sum / total,
            "accuracy": stats["correct"] / total,
            "grad_norm": norm,
            "lr": lr,
            "ppl_avg25": jnp.nanmean(ppl),
            "bad_steps": new_state["bad_steps"],
            "skipped_steps": new_state["skipped_steps"],
        }
        if config.precision == "fp16":
            metrics["loss_scale"] = new_state["loss_scale"]
        return new_state, metrics

    everywhere = replicated(batch.mesh)
    return jax.jit(
        train_step, in_shardings=(spec.shardings, batch), out_shardings=(spec.shardings, everywhere), donate_argnums=0
    )


def make_eval_step(objective: Objective, spec: StateSpec, batch: NamedSharding) -> Any:
    """Returns the jitted function (params, batch) -> sums over the batch (nll, correct, weight), without dropout."""

    def eval_step(params: Params, batch: Batch) -> Stats:
        return objective.loss(params, batch, None, jnp.zeros((), jnp.int32))[1]

    everywhere = replicated(batch.mesh)
    return jax.jit(eval_step, in_shardings=(spec.shardings["params"], batch), out_shardings=everywhere)


def _gradients(
    objective: Objective,
    config: TrainConfig,
    params: Params,
    step: jax.Array,
    batch: Batch,
    key: jax.Array,
    scale: jax.Array,
) -> tuple[Params, jax.Array, Stats]:
    """Returns gradients of scale * loss, summed over micro-batches, with the unscaled loss and statistics."""

    def scaled(params: Params, batch: Batch, key: jax.Array) -> tuple[jax.Array, tuple[jax.Array, Stats]]:
        loss, stats = objective.loss(params, batch, key, step)
        return loss * scale, (loss, stats)

    def micro_step(batch: Batch, key: jax.Array) -> tuple[Params, jax.Array, Stats]:
        grads, (loss, stats) = jax.grad(scaled, has_aux=True)(params, batch, key)
        return grads, loss, stats

    n = config.grad_accum
    if n == 1:
        return micro_step(batch, key)
    # Micro-batch i takes every n-th row from i on, so that every device has rows of every micro-batch.
    micro = jax.tree.map(lambda x: x.reshape(-1, n, *x.shape[1:]).swapaxes(0, 1), batch)

    def add(total: Any, index: jax.Array) -> tuple[Any, None]:
        part = micro_step(jax.tree.map(lambda x: x[index], micro), jax.random.fold_in(key, index))
        return jax.tree.map(jnp.add, total, part), None

    shapes = jax.eval_shape(micro_step, jax.tree.map(lambda x: x[0], micro), key)
    zeros = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), shapes)
    total, _ = jax.lax.scan(add, zeros, jnp.arange(n))
    result: tuple[Params, jax.Array, Stats] = total
    return result


def _counters(state: State, good: jax.Array, loss: jax.Array, config: TrainConfig) -> State:
    """Returns the counters and the loss scale after an update; `good` says whether it was finite."""
    bad = 1 - good.astype(jnp.int32)
    scale, good_steps = state["loss_scale"], state["good_steps"]
    overflow = bad
    if config.precision == "fp16":
        good_steps = jnp.where(good, good_steps + 1, 0)
        grow = good_steps >= _GROWTH_STEPS
        # An overflow that a smaller loss scale can remove does not count as a bad step.
        overflow = bad * (scale <= 1.0)
        scale = jnp.where(good, jnp.where(grow, scale * 2, scale), jnp.maximum(scale / 2, 1.0))
        good_steps = jnp.where(grow, 0, good_steps)
    recent = jnp.concatenate([state["recent_loss"][1:], loss[None]])
    return {
        "step": state["step"] + 1,
        "bad_steps": jnp.where(good, 0, state["bad_steps"] + overflow),
        "skipped_steps": state["skipped_steps"] + bad,
        "loss_scale": scale,
        "good_steps": good_steps,
        "recent_loss": jnp.where(good, recent, state["recent_loss"]),
    }
