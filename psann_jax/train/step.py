"""The training state and the jitted functions that update and evaluate it."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding

from psann_jax.config import TrainConfig
from psann_jax.models.lora import LORA
from psann_jax.models.network import Network, Params
from psann_jax.nn.partition import param_shardings
from psann_jax.train.compatibility import check_compatible
from psann_jax.train.mesh import replicated
from psann_jax.train.optimizers import make_optimizer, optimizer_shardings
from psann_jax.train.update import Batch, Objective, State, Stats, Update

ROLLING_STEPS = 25
_INITIAL_SCALE = 2.0**15  # of fp16 losses


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
        "opt_state": make_optimizer(config, network.infos, 0.0, network.config.d_model).init(params),
        "step": jnp.zeros((), jnp.int32),
        "bad_steps": jnp.zeros((), jnp.int32),
        "skipped_steps": jnp.zeros((), jnp.int32),
        "loss_scale": jnp.asarray(_INITIAL_SCALE if config.precision == "fp16" else 1.0, jnp.float32),
        "good_steps": jnp.zeros((), jnp.int32),
        "recent_loss": jnp.full((ROLLING_STEPS,), jnp.nan, jnp.float32),
    }


def abstract_state(network: Network, config: TrainConfig) -> State:
    """Returns the state with `jax.ShapeDtypeStruct` leaves."""
    abstract: State = jax.eval_shape(lambda params: _first_state(network, config, params), network.abstract)
    return abstract


def state_spec(network: Network, config: TrainConfig, mesh: Mesh) -> StateSpec:
    """Returns shapes and shardings of the state on a mesh, without creating arrays."""
    abstract = abstract_state(network, config)
    shardings = jax.tree.map(lambda _: replicated(mesh), abstract)
    shardings["params"] = param_shardings(mesh, abstract["params"], network.infos)
    if config.ema_decay:
        shardings["ema_params"] = shardings["params"]
    # Left to jit, the moments would be replicated and the step compiled twice.
    shardings["opt_state"] = optimizer_shardings(
        make_optimizer(config, network.infos, 0.0, network.config.d_model),
        abstract["params"],
        shardings["params"],
        replicated(mesh),
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
        copies. Adapters (train.lora_rank) may be missing.

    Raises:
      UserError: `initial_params` do not have the shapes and types of the network.
    """
    if initial_params is None:
        make = jax.jit(lambda key: _first_state(network, config, network.init(key)), out_shardings=spec.shardings)
        state: State = make(jax.random.key(seed))
        return state
    if network.lora is not None and LORA not in initial_params:  # those of a network without adapters
        initial_params = jax.jit(network.lora.with_initial)(initial_params, jax.random.key(seed))
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
    update = Update(objective, config, seed)

    def train_step(state: State, batch: Batch) -> tuple[State, Stats]:
        terms = update.terms(state, batch)
        sums = update.gradients(state["params"], batch, terms)
        if config.sam_rho:
            perturbed, second = update.perturb(state["params"], terms, sums.grads)
            sums = sums._replace(grads=update.gradients(perturbed, batch, second).grads)
        return update.apply(state, terms, sums)

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
