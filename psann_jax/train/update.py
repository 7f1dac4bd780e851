"""The mathematics of an update: gradients summed over micro-batches, and the change of the state that follows.

`psann_jax.train.step` makes one program of it, `psann_jax.train.micro_batches` several.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import optax

from psann_jax.config import TrainConfig
from psann_jax.models.network import Network, Params
from psann_jax.nn.layers import join_layers, split_layers
from psann_jax.ops import kernels
from psann_jax.ops.linear import wide_kernel_gradients
from psann_jax.train.optimizers import ascend, clip_by_global_norm, make_optimizer
from psann_jax.train.schedules import learning_rate

_GROWTH_STEPS = 1000  # good updates after which the loss scale of fp16 is doubled; a bad one halves it
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


class Terms(NamedTuple):
    """What the gradients of an update depend on besides parameters and batch; scalars.

    Attributes:
      step: number of updates done.
      loss_scale: of the state.
      total: number of targets in the batch, at least 1.
      key: of everything random in the update.
    """

    step: jax.Array
    loss_scale: jax.Array
    total: jax.Array
    key: jax.Array


class Sums(NamedTuple):
    """Sums over micro-batches.

    Attributes:
      grads: gradients of the summed loss; in fp16, of the mean over the whole batch, times the loss scale.
      loss: the summed loss, scalar.
      stats: the sums nll, correct and weight.
    """

    grads: Params
    loss: jax.Array
    stats: Stats


@dataclass(frozen=True)
class Update:
    """The functions that an update consists of.

    Attributes:
      objective: the task.
      config: the training section.
      seed: of everything random.
    """

    objective: Objective
    config: TrainConfig
    seed: int

    def terms(self, state: State, batch: Batch) -> Terms:
        """Returns the terms of an update, given the state before it (`step` and `loss_scale`) and its batch."""
        key = jax.random.fold_in(jax.random.key(self.seed), state["step"])
        return Terms(state["step"], state["loss_scale"], jnp.maximum(self.objective.weight(batch), 1.0), key)

    def gradients(self, params: Params, batch: Batch, terms: Terms) -> Sums:
        """Returns the sums over a batch, one micro-batch after the other."""
        n = self.config.grad_accum
        if n == 1:
            return self._micro_batch(params, batch, terms, terms.key)
        return self.add(params, batch, terms, self.zeros(params, batch, terms), (0, n))

    def zeros(self, params: Params, batch: Batch, terms: Terms) -> Sums:
        """Returns the sums over no micro-batches."""
        first = jax.tree.map(lambda x: x[0], self._divided(batch))
        shapes = jax.eval_shape(self._micro_batch, params, first, terms, terms.key)
        zeros: Sums = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), shapes)
        return zeros

    def add(
        self, params: Params, batch: Batch, terms: Terms, sums: Sums, interval: tuple[int | jax.Array, int | jax.Array]
    ) -> Sums:
        """Returns the sums with the micro-batches of a half-open interval of indices added."""
        micro, infos, split = self._divided(batch), self.objective.network.infos, self._sums_over_devices_last()

        def change(form: Callable[[Params, Params], Params], sums: Sums) -> Sums:
            return sums._replace(grads=form(sums.grads, infos)) if split else sums

        def add_one(index: jax.Array, sums: Sums) -> Sums:
            rows = jax.tree.map(lambda x: x[index], micro)
            part = self._micro_batch(params, rows, terms, jax.random.fold_in(terms.key, index))
            return jax.tree.map(jnp.add, sums, change(split_layers, part))

        total: Sums = jax.lax.fori_loop(*interval, add_one, change(split_layers, sums))
        return change(join_layers, total)

    def perturb(self, params: Params, terms: Terms, grads: Params) -> tuple[Params, Terms]:
        """Returns parameters and terms of the second gradient (train.sam_rho)."""
        perturbed = ascend(params, self._mean(grads, terms), self.config.sam_rho, self.objective.network.infos)
        return perturbed, terms._replace(key=jax.random.fold_in(terms.key, _SAM_KEY))

    def apply(self, state: State, terms: Terms, sums: Sums) -> tuple[State, Stats]:
        """Returns the state after an update and its metrics, given the sums over its batch.

        With train.sam_rho, the gradients in `sums` are those at the perturbed parameters.
        """
        config, network = self.config, self.objective.network
        grads, norm = clip_by_global_norm(self._mean(sums.grads, terms), config.grad_clip, network.infos)
        lr = learning_rate(terms.step, config)
        optimizer = make_optimizer(config, network.infos, lr, network.config.d_model)
        updates, opt_state = optimizer.update(grads, state["opt_state"], state["params"])
        # A batch may have no targets, as windows of prompts alone; it has no loss then.
        n_targets = jnp.where(sums.stats["weight"] > 0, terms.total, jnp.nan)
        loss = sums.stats["nll"] / n_targets
        good = jnp.isfinite(sums.loss) & jnp.isfinite(norm)
        changed = {"params": optax.apply_updates(state["params"], updates), "opt_state": opt_state}
        if config.ema_decay:
            averaged = optax.incremental_update(changed["params"], state["ema_params"], 1 - config.ema_decay)
            changed["ema_params"] = self._with_frozen(averaged, state["ema_params"])  # without rounding
        unchanged = {name: state[name] for name in changed}
        new_state = jax.tree.map(lambda new, old: jnp.where(good, new, old), changed, unchanged)
        new_state |= _counters(state, good, loss, config)
        ppl = jnp.exp(new_state["recent_loss"])
        metrics = {
            "loss": loss,
            "objective": sums.loss / terms.total,
            "accuracy": sums.stats["correct"] / n_targets,
            "grad_norm": norm,
            "lr": lr,
            "ppl_avg25": jnp.nanmean(ppl),
            "bad_steps": new_state["bad_steps"],
            "skipped_steps": new_state["skipped_steps"],
        }
        if config.precision == "fp16":
            metrics["loss_scale"] = new_state["loss_scale"]
        return new_state, metrics

    def _divided(self, batch: Batch) -> Batch:
        """Returns the batch with an axis of micro-batches before the rows.

        Micro-batch i takes every n-th row from i on, so that every device has rows of every micro-batch.
        """
        n = self.config.grad_accum
        return jax.tree.map(lambda x: x.reshape(-1, n, *x.shape[1:]).swapaxes(0, 1), batch)

    def _with_frozen(self, params: Params, frozen: Params) -> Params:
        """Returns `params`; with `train.freeze` or adapters, those that are not trained from `frozen`."""
        if not (self.config.freeze or self.config.lora_rank):
            return params
        return jax.tree.map(lambda i, a, b: a if i.trainable else b, self.objective.network.infos, params, frozen)

    def _micro_batch(self, params: Params, batch: Batch, terms: Terms, key: jax.Array) -> Sums:
        # No factor, see `_sums_over_devices_last`, but in fp16 the gradients would leave the range of the type.
        scale = terms.loss_scale / terms.total if self.config.precision == "fp16" else 1.0

        def scaled(params: Params) -> tuple[jax.Array, tuple[jax.Array, Stats]]:
            given = self._with_frozen(params, jax.lax.stop_gradient(params))
            loss, stats = self.objective.loss(given, batch, key, terms.step)
            return loss * scale, (loss, stats)

        with wide_kernel_gradients(self.config.grad_accum > 1 and self._sums_over_devices_last()):
            grads, (loss, stats) = jax.grad(scaled, has_aux=True)(params)
        return Sums(grads, loss, stats)

    def _sums_over_devices_last(self) -> bool:
        """Returns whether XLA can move the sum of gradients over devices out of the loop of micro-batches.

        It does so on GPUs and TPUs, if nothing comes between that sum and the one over micro-batches: no factor, no
        conversion (`wide_kernel_gradients`), no stack of layers (`split_layers`), and no division over fsdp.
        """
        whole = jax.sharding.get_abstract_mesh().shape.get("fsdp", 1) == 1
        summed = kernels.replicas() > 1 and whole and kernels.platform() != "cpu"
        return summed and not self.objective.network.scans_layers()

    def _mean(self, grads: Params, terms: Terms) -> Params:
        """Returns the gradients of the mean loss over the whole batch, given those of `Sums`."""
        factor = 1.0 / (terms.loss_scale if self.config.precision == "fp16" else terms.total)
        mean: Params = jax.tree.map(lambda g: g * factor, grads)
        return mean


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
        "recent_loss": jnp.where(good & jnp.isfinite(loss), recent, state["recent_loss"]),
    }
