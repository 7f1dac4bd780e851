"""The compiled update of a run: one program, or several that the host dispatches.

On an accelerator an update takes about a second, and one program is the fastest form. On a CPU it can take minutes.
There the host dispatches the micro-batches, so that a signal can end the run between two of them.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import jax
import numpy as np
from jax.sharding import NamedSharding

from psann_jax.config import TrainConfig
from psann_jax.models.network import Params
from psann_jax.ops import kernels
from psann_jax.train.mesh import bytes_per_device, replicated
from psann_jax.train.step import StateSpec, make_train_step
from psann_jax.train.update import Batch, Objective, State, Stats, Sums, Terms, Update

# The host dispatches work of up to this time at once where a signal should not have to wait. Less would cost time: each
# dispatch allocates the memory of its activations anew, which takes 10 % of the time of micro-batches of 80 ms.
_DISPATCH_S = 1.0


def _nothing() -> None:
    pass


@dataclass
class _Pace:
    """How many micro-batches to dispatch at once; only the time depends on it, never a result.

    Attributes:
      size: of the last dispatch, in micro-batches; 0 before the first.
      since: when the last dispatch was made.
    """

    size: int = 0
    since: float = 0.0

    def next_size(self) -> int:
        """Returns the size of the next dispatch, if everything before it is done now."""
        if not self.size:
            return 1  # to measure it
        seconds = (time.perf_counter() - self.since) / self.size
        return max(int(_DISPATCH_S / max(seconds, 1e-6)), 1)

    def dispatched(self, size: int) -> None:
        """Takes note that a number of micro-batches begin now."""
        self.size, self.since = size, time.perf_counter()


@dataclass(frozen=True)
class OneProgram:
    """An update that is one program, which nothing interrupts.

    Attributes:
      program: the compiled function (state, batch) -> (state, metrics) of `make_train_step`.
      unit: what a signal has to wait for.
    """

    program: Any
    unit: ClassVar[str] = "the current update"

    def __call__(self, state: State, batch: Batch, before_each: Callable[[], None] = _nothing) -> tuple[State, Stats]:
        """Returns the new state and the metrics of `make_train_step`; the state is donated."""
        del before_each  # there are no micro-batches to call it between
        result: tuple[State, Stats] = self.program(state, batch)
        return result

    def memory_bytes(self) -> int:
        """Returns the memory on one device, state and batch included, as the compiler reports it."""
        return _memory_bytes(self.program)

    def as_text(self) -> str:
        """Returns the optimised program."""
        return str(self.program.as_text())


@dataclass(frozen=True)
class MicroBatches:
    """An update whose micro-batches the host dispatches, one by one if they are slow.

    State and metrics equal those of `OneProgram` bit for bit: `Update.add` is a loop in both, with bounds that the
    compiler does not know here, so that it makes the same program of the loop's body.

    Attributes:
      begin: (counters, params, batch) -> (terms, zeros). The counters are the entries of the state that
        `Update.terms` needs; zeros are sums to add to.
      add: (params, batch, terms, sums, first, end) -> sums, with micro-batches added; the sums are donated.
      perturb: (params, batch, terms, gradients) -> (params, terms, zeros) for the second gradient of train.sam_rho; the
        gradients are donated. None without.
      apply: (state, terms, sums) -> (state, metrics); the state is donated.
      indices: int32 scalars on the devices, from 0 to the number of micro-batches.
      spec: shapes and shardings of the state.
      pace: decides how many micro-batches are dispatched at once.
      unit: what a signal has to wait for.
    """

    begin: Any
    add: Any
    perturb: Any
    apply: Any
    indices: list[jax.Array]
    spec: StateSpec
    pace: _Pace = field(default_factory=_Pace)
    unit: ClassVar[str] = "the current micro-batch"

    def __call__(self, state: State, batch: Batch, before_each: Callable[[], None] = _nothing) -> tuple[State, Stats]:
        """Returns the new state and the metrics of `make_train_step`.

        Args:
          state: the state before the update; donated when the last micro-batch has been dispatched.
          batch: the whole batch.
          before_each: called before each dispatch of micro-batches, when everything before it is done. If it raises,
            the sums are dropped, and the state before the update is still valid.
        """
        params = state["params"]
        terms, zeros = self.begin(_counters(state), params, batch)
        sums = self._sum((params, batch, terms), zeros, before_each)
        if self.perturb is not None:
            perturbed, second, zeros = self.perturb(params, batch, terms, sums.grads)
            sums = sums._replace(grads=self._sum((perturbed, batch, second), zeros, before_each).grads)
        result: tuple[State, Stats] = self.apply(state, terms, sums)
        return result

    def _sum(self, inputs: tuple[Params, Batch, Terms], sums: Sums, before_each: Callable[[], None]) -> Sums:
        done, n = 0, len(self.indices) - 1
        while done < n:
            jax.block_until_ready(sums)
            size = min(self.pace.next_size(), n - done)
            before_each()
            self.pace.dispatched(size)
            sums = self.add(*inputs, sums, self.indices[done], self.indices[done + size])
            done += size
        return sums

    def memory_bytes(self) -> int:
        """Returns the memory on one device, state and batch included, as the compiler reports it."""
        state = bytes_per_device(self.spec.abstract, self.spec.shardings)
        params = bytes_per_device(self.spec.abstract["params"], self.spec.shardings["params"])
        # `add` and `perturb` do not get the state apart from the parameters. During the second gradient there are the
        # perturbed parameters as well.
        perturbed = 0 if self.perturb is None else params
        sizes = [_memory_bytes(self.add) + state - params + perturbed, _memory_bytes(self.apply)]
        if self.perturb is not None:
            sizes.append(_memory_bytes(self.perturb) + state - params)
        return max(sizes)

    def as_text(self) -> str:
        """Returns the optimised programs."""
        programs = (self.begin, self.add, self.perturb, self.apply)
        return "\n".join(program.as_text() for program in programs if program is not None)


def waits_for_each(seconds: float) -> bool:
    """Returns whether the host waits for an update before it dispatches the next one, so that a signal need not.

    Args:
      seconds: time of an update.
    """
    return _is_one_cpu_process() and seconds > _DISPATCH_S


def _is_one_cpu_process() -> bool:
    """Returns whether the current mesh is CPU devices of one process."""
    return kernels.platform() == "cpu" and jax.process_count() == 1


def compile_update(
    objective: Objective, config: TrainConfig, spec: StateSpec, batch: tuple[NamedSharding, Any], seed: int
) -> OneProgram | MicroBatches:
    """Compiles the update of a run for the current mesh.

    Args:
      objective: the task.
      config: the training section.
      spec: from `state_spec`.
      batch: sharding and shapes of a batch.
      seed: of everything random.

    Returns:
      `MicroBatches` if there are several and the mesh is CPU devices of one process, otherwise `OneProgram`.
    """
    sharding, shapes = batch
    if config.grad_accum > 1 and _is_one_cpu_process():
        return compile_micro_batches(Update(objective, config, seed), spec, sharding, shapes)
    step = make_train_step(objective, config, spec, sharding, seed)
    return OneProgram(step.lower(spec.abstract, shapes).compile())


def compile_micro_batches(update: Update, spec: StateSpec, sharding: NamedSharding, shapes: Any) -> MicroBatches:
    """Compiles `MicroBatches`; see `compile_update`."""
    everywhere: Any = replicated(sharding.mesh)
    at_params = spec.shardings["params"]
    at_sums = Sums(at_params, everywhere, everywhere)

    def begin(counters: State, params: Params, batch: Batch) -> tuple[Terms, Sums]:
        terms = update.terms(counters, batch)
        return terms, update.zeros(params, batch, terms)

    def add(params: Params, batch: Batch, terms: Terms, sums: Sums, first: jax.Array, end: jax.Array) -> Sums:
        return update.add(params, batch, terms, sums, (first, end))

    def perturb(params: Params, batch: Batch, terms: Terms, grads: Params) -> tuple[Params, Terms, Sums]:
        perturbed, second = update.perturb(params, terms, grads)
        return perturbed, second, update.zeros(params, batch, terms)

    state, params, counters = spec.abstract, spec.abstract["params"], _counters(spec.abstract)
    terms, sums = jax.eval_shape(begin, counters, params, shapes)
    of_counters, of_params, of_batch = (counters, everywhere), (params, at_params), (shapes, sharding)
    of_index = (jax.ShapeDtypeStruct((), np.int32), everywhere)
    of_terms, of_sums, of_grads = (terms, everywhere), (sums, at_sums), (sums.grads, at_params)
    return MicroBatches(
        _compile(begin, (of_counters, of_params, of_batch), (everywhere, at_sums)),
        _compile(add, (of_params, of_batch, of_terms, of_sums, of_index, of_index), at_sums, donated=3),
        _compile(perturb, (of_params, of_batch, of_terms, of_grads), (at_params, everywhere, at_sums), donated=3)
        if update.config.sam_rho
        else None,
        _compile(update.apply, ((state, spec.shardings), of_terms, of_sums), (spec.shardings, everywhere), donated=0),
        [jax.device_put(np.int32(i), everywhere) for i in range(update.config.grad_accum + 1)],
        spec,
    )


def _compile(function: Callable[..., Any], arguments: tuple[Any, ...], results: Any, donated: int | None = None) -> Any:
    """Compiles a function, given shapes and shardings of its arguments, and the shardings of its results."""
    shapes, shardings = zip(*arguments, strict=True)
    jitted = jax.jit(function, in_shardings=shardings, out_shardings=results, donate_argnums=donated)
    return jitted.lower(*shapes).compile()


def _counters(state: State) -> State:
    """Returns the entries of a state that `Update.terms` needs."""
    return {name: state[name] for name in ("step", "loss_scale")}


def _memory_bytes(program: Any) -> int:
    found = program.memory_analysis()
    size = found.argument_size_in_bytes + found.output_size_in_bytes - found.alias_size_in_bytes
    return int(size + found.temp_size_in_bytes)
