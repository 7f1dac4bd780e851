"""AdamW, Adafactor and Muon for a nested dict of parameters, clipping by the global norm, and SAM's ascent step.

A parallel dict of `psann_jax.nn.partition.ParamInfo` describes every parameter: its kind, the names of its axes and
whether it is trained. The kind decides on weight decay and on Muon.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import optax

from psann_jax.config import TrainConfig, require
from psann_jax.nn.partition import kinds_of
from psann_jax.train.adafactor import scale_by_factored_rms

# Kinds for which zero is not the neutral value: the scale of a norm and alpha are neutral at 1, a mixing matrix at the
# identity, and raw sine parameters would decay towards softplus(0), raw gates towards sigmoid(0).
UNDECAYED_KINDS = frozenset({"norm", "bias", "sine", "alpha", "gravity", "gate", "mixing"})
MUON_KINDS = frozenset({"matrix", "mixing"})
WIDE_KINDS = frozenset({"matrix", "mixing", "head"})  # each output sums over as many inputs as the model is wide


def make_optimizer(
    config: TrainConfig, infos: Any, learning_rate: float | jax.Array, d_model: int = 0
) -> optax.GradientTransformationExtraArgs:
    """Returns the optimizer for one update.

    The learning rate is a value, not a schedule: build the transformation inside the jitted step, with the rate of that
    step. The state does not depend on it, so any rate is fine for `init`. Frozen parameters get zero updates and no
    state.

    Args:
      config: the training section (optimizer, betas, eps, weight decay).
      infos: dict with the structure of the parameters and their ParamInfo as leaves.
      learning_rate: scalar, traced or not. Its scale is that of AdamW for all three optimizers. A parameter's rate is
        this one times its factor, see `lr_factors`.
      d_model: width of the model, needed with `config.lr_base_width`.

    Returns:
      An optax transformation whose updates are added to the parameters.

    Raises:
      ConfigError: `config.lr_scales` has a factor for parameters that the model does not train.
    """

    def group(info: Any) -> str:
        if not info.trainable:
            return "frozen"
        return "adamw" if config.optimizer == "muon" and info.kind not in MUON_KINDS else config.optimizer

    groups = jax.tree.map(group, infos)
    decay_mask = jax.tree.map(lambda i: config.weight_decay_on == "all" or i.kind not in UNDECAYED_KINDS, infos)
    factors = lr_factors(config, infos, d_model)
    make_scaling = {"adamw": _adam, "adafactor": _adafactor, "muon": _muon}
    transforms: dict[str, Any] = {
        name: optax.chain(
            make_scaling[name](config, infos, groups),
            optax.add_decayed_weights(config.weight_decay, decay_mask),
            _scale_by_rates(learning_rate, jax.tree.map(_mask, jax.tree.map(name.__eq__, groups), factors)),
        )
        for name in sorted(set(jax.tree.leaves(groups)) - {"frozen"})
    }
    return optax.partition(transforms | {"frozen": optax.set_to_zero()}, groups)


def lr_factors(config: TrainConfig, infos: Any, d_model: int) -> Any:
    """Returns each parameter's factor of the learning rate, in the structure of `infos`.

    It is the factor of its kind in `config.lr_scales`; for matrices whose number of inputs grows with the width, times
    `config.lr_base_width / d_model` (Yang et al., 2022, "Tensor Programs V", table 3, the learning rates of Adam; its
    initial weights and multipliers are not part of this).

    Args:
      config: the training section.
      infos: as in `make_optimizer`.
      d_model: width of the model.

    Raises:
      ConfigError: a factor other than 1 is of a kind that the model does not train.
    """
    scales, trained = config.lr_scales, set[str]()
    by_width = config.lr_base_width / d_model if config.lr_base_width else 1.0

    def factor(path: Any, info: Any) -> float:
        names = kinds_of(path, info)
        if info.trainable:
            trained.update(names)
        return math.prod(getattr(scales, name, 1.0) for name in names) * (by_width if WIDE_KINDS & {*names} else 1.0)

    factors = jax.tree_util.tree_map_with_path(factor, infos)
    for scale in dataclasses.fields(scales):
        value = getattr(scales, scale.name)
        name = f"train.lr_scales.{scale.name}"
        require(value == 1 or scale.name in trained, name, "has no effect: the model trains no such parameter")
    return factors


def _scale_by_rates(learning_rate: float | jax.Array, factors: Any) -> optax.GradientTransformation:
    """Multiplies updates by minus the learning rate times their factor. It has no state."""
    if set(jax.tree.leaves(factors)) == {1.0}:
        return optax.scale_by_learning_rate(learning_rate)

    def scale(updates: Any, params: Any = None) -> Any:
        return jax.tree.map(lambda update, factor: -learning_rate * factor * update, updates, factors)

    return optax.stateless(scale)


def optimizer_shardings(optimizer: Any, params: Any, shardings: Any, replicated: Any) -> Any:
    """Returns the sharding of every array in the optimizer's state; moments are sharded like their parameters.

    Args:
      optimizer: from `make_optimizer`.
      params: abstract or real parameters.
      shardings: shardings of the parameters, in the same structure.
      replicated: sharding of arrays without a parameter's shape: counts and Adafactor's factored moments.

    Returns:
      A pytree with the structure of ``optimizer.init(params)``.
    """

    def of_moment(moment: Any, param: Any, sharding: Any) -> Any:
        if isinstance(moment, optax.MaskedNode):
            return moment
        return sharding if moment.shape == param.shape else replicated

    found = []

    def find() -> None:
        found.append(
            optax.tree_utils.tree_map_params(
                optimizer,
                of_moment,
                optimizer.init(params),
                params,
                shardings,
                transform_non_params=lambda _: replicated,
                is_leaf=lambda x: isinstance(x, optax.MaskedNode),
            )
        )

    # Traced, because tree_map_params would otherwise make arrays, which devices that are only compiled for cannot hold.
    jax.eval_shape(find)
    return found[0]


def clip_by_global_norm(grads: Any, max_norm: float, infos: Any = None) -> tuple[Any, jax.Array]:
    """Scales all gradients by one factor so that their global L2 norm is at most `max_norm`.

    Args:
      grads: pytree of arrays; the norm is computed in float32 or better.
      max_norm: the bound; 0 disables clipping.
      infos: as in `make_optimizer`; if given, frozen parameters do not count in the norm.

    Returns:
      The gradients, with unchanged types, and the norm before clipping (scalar).
    """
    norm = _global_norm(grads, infos)
    if not max_norm:
        return grads, norm
    factor = max_norm / jnp.maximum(norm, max_norm)
    return jax.tree.map(lambda g: (g * factor).astype(g.dtype), grads), norm


def ascend(params: Any, grads: Any, rho: float, infos: Any) -> Any:
    """Returns SAM's perturbed parameters, at distance `rho` in the direction of steepest ascent of the loss.

    Foret et al. (2021), "Sharpness-Aware Minimization for Efficiently Improving Generalization", take the gradient of
    an update there. Frozen parameters are not perturbed.
    """
    factor = rho / (_global_norm(grads, infos) + 1e-12)
    return jax.tree.map(lambda i, p, g: p + (factor * g).astype(p.dtype) if i.trainable else p, infos, params, grads)


def _global_norm(grads: Any, infos: Any) -> jax.Array:
    counted = grads
    if infos is not None:
        counted = jax.tree.map(lambda i, g: g if i.trainable else None, infos, grads)
    squares = [jnp.sum(jnp.square(g.astype(jnp.promote_types(g.dtype, jnp.float32)))) for g in jax.tree.leaves(counted)]
    return jnp.sqrt(sum(squares, start=jnp.float32(0)))


def _adam(config: TrainConfig, infos: Any, groups: Any) -> optax.GradientTransformation:
    b1, b2 = config.betas
    return optax.scale_by_adam(b1=b1, b2=b2, eps=config.eps)


def _adafactor(config: TrainConfig, infos: Any, groups: Any) -> optax.GradientTransformation:
    """Shazeer and Stern (2018), "Adafactor", without momentum and without step sizes relative to the weights.

    Relative step sizes are omitted so that `lr` means the same as for AdamW. Updates are clipped to a root mean square
    of 1, and second moments factored, separately for each layer of a stacked parameter, as in the paper for one weight
    matrix.
    """
    stacked = jax.tree.map(lambda i, g: _mask(g == "adafactor", i.axes[:1] == ("layers",)), infos, groups)

    def clip(updates: Any, params: Any = None) -> Any:
        def clip_one(u: jax.Array, is_stacked: bool) -> jax.Array:
            axes = tuple(range(1 if is_stacked else 0, u.ndim))
            return u / jnp.maximum(1, jnp.sqrt(jnp.mean(jnp.square(u), axis=axes, keepdims=True)))

        return jax.tree.map(clip_one, updates, stacked)

    return optax.chain(scale_by_factored_rms(stacked), optax.stateless(clip))


def _muon(config: TrainConfig, infos: Any, groups: Any) -> optax.GradientTransformation:
    """Jordan (2024), "Muon", with the update size of Liu et al. (2025), "Muon is Scalable for LLM Training".

    The last two axes of a matrix parameter are (input, output). All axes before them index separate matrices, which are
    orthogonalised separately. Updates are scaled by ``0.2 * sqrt(max(input, output))``, which gives them the usual root
    mean square of AdamW.
    """
    numbers = jax.tree.map(lambda g: _mask(g == "muon", optax.contrib.MuonDimensionNumbers(-2, -1)), groups)

    def scale(updates: Any, params: Any = None) -> Any:
        return jax.tree.map(lambda u: 0.2 * max(u.shape[-2:]) ** 0.5 * u, updates)

    scaling = optax.contrib.scale_by_muon(beta=config.muon_momentum, weight_dimension_numbers=lambda _: numbers)
    return optax.chain(scaling, optax.stateless(scale))


def _mask(in_group: bool, value: Any) -> Any:
    """Returns `value`, or the node by which `optax.partition` replaces parameters of other groups."""
    return value if in_group else optax.MaskedNode()
