"""Compiles the programs of a run for devices that are not there, and says what they would do.

Nothing is run. Each program is compiled in a process of its own, because a compiler may end its process.
"""

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax

from psann_jax.bench import hlo
from psann_jax.bench.random_task import random_task
from psann_jax.bench.topologies import Topology, parse_topology, prepare
from psann_jax.bench.turns import log
from psann_jax.bench.workers import Worker
from psann_jax.config import Config, require
from psann_jax.config.families import family
from psann_jax.config.io import parse, to_dict
from psann_jax.models.flops import flops_per_token, forward_flops_per_token
from psann_jax.models.text_network import TextNetwork
from psann_jax.nn.mesh import make_mesh
from psann_jax.nn.partition import MESH_AXES
from psann_jax.ops import kernels
from psann_jax.sample.sampler import Sampler
from psann_jax.sample.settings import Sampling
from psann_jax.train.hardware import peak_flops
from psann_jax.train.mesh import batch_sharding, check_rows
from psann_jax.train.step import make_eval_step, make_train_step, state_spec
from psann_jax.utils.errors import UserError, one_line

_GIB, _GB, _TERA = 2**30, 1e9, 1e12
_PROMPT_FRACTION = 2  # a prefill appends a half of the window
# All filters at work, so that the program has the cost of each.
_SAMPLING = Sampling(temperature=0.8, top_k=50, top_p=0.95)


def compile_programs(config: Config, topology: Topology, programs: Sequence[str], rows: int) -> dict[str, Any]:
    """Compiles programs of an experiment for the devices of a topology.

    Args:
      config: the experiment; random data replace its own. Its mesh may use some of the devices only.
      topology: the devices.
      programs: of train, eval, prefill and decode; the last two exist for language models only.
      rows: texts that prefill and decode work on together.

    Returns:
      The entries of the first program; `programs`, a dict of all of them; topology, device, mesh and config. The
      entries of a program are

      - ok, and error: why it does not compile, a line, or None;
      - memory_gib: arguments, results and temporary memory of one device; argument_gib; temp_gib;
      - kernels, hbm_gb, tflop (matrix products), loops_counted_once: see `psann_jax.bench.hlo.Counts`;
      - tflop_by_hand: by the formulas of `psann_jax.models.flops`, of one device; None for prefill and decode;
      - collectives: kind -> count, mb and largest_mb (of one result); custom_calls: target -> count;
      - between_slices: kind -> count and mb of the collectives, or parts of them, that use the slow network;
      - roofline_ms, and bound_by ("memory" or "compute"): the time if the slower of both ran at its peak rate;
      - estimated_ms: by the TPU compiler, without collectives and kernels written by hand; None for GPUs;
      - implementations: operation -> names, see `psann_jax.ops.kernels.choose`;
      - compile_s.

      A decode program runs for `psann_jax.sample.sampler.MAX_STEPS` tokens; its entries are those of one token.

    Raises:
      UserError: the mesh does not fit, a program does not exist, or a compiler's package is missing.
    """
    task = random_task(config)
    config = task.config
    if not issubclass(family(config.model.base).get("network"), TextNetwork):
        programs = [name for name in programs if name in ("train", "eval")]
        require(bool(programs), "--what", f"prefill and decode need a language model, not base {config.model.base}")
    mesh = _mesh(config, topology)
    task.check_mesh(mesh)
    if {"train", "eval"} & set(programs):
        check_rows(mesh, config)
    results = {name: _compile_alone(name, config, topology, rows) for name in programs}
    first = results[programs[0]]
    found = {"device": mesh.devices.flat[0].device_kind, "mesh": dict(mesh.shape), "topology": topology.name}
    return {**first, "programs": results, **found, "config": to_dict(config)}


def _mesh(config: Config, topology: Topology) -> jax.sharding.Mesh:
    """The mesh of the config; without an axis of -1 it may leave devices unused."""
    fill = -1 in [getattr(config.mesh, axis) for axis in MESH_AXES]
    sizes = dataclasses.replace(config.mesh, slices=config.mesh.slices or topology.slices)
    return make_mesh(sizes, all_devices=fill, devices=topology.devices())


def _compile_alone(name: str, config: Config, topology: Topology, rows: int) -> dict[str, Any]:
    log(f"compiling {name} for {topology.name} ...")
    try:
        with Worker(f"{name} for {topology.name}", __name__, to_dict(config), topology.name, rows) as worker:
            result: dict[str, Any] = worker.ask("run", name)
            return result
    except UserError as error:
        return _failure(str(error))


class Compiler:
    """Compiles programs in this process; see `compile_programs`."""

    def __init__(self, config: Config, topology: Topology, rows: int) -> None:
        """Builds the task; compiles nothing yet."""
        self.facts: dict[str, Any] = {}
        self._task = random_task(config)
        self._config, self._topology, self._rows = self._task.config, topology, rows
        self._mesh = _mesh(self._config, topology)

    def run(self, name: str) -> dict[str, Any]:
        """Compiles a program and returns its entries, also if that fails; raises UserError for a wrong setting."""
        began = time.perf_counter()
        try:
            with kernels.recorded() as chosen:
                lowered = self._lower(name)
            compiled = lowered.compile()
        except UserError:
            raise  # `_compile_alone` reports it
        except Exception as error:  # those of Pallas have no common class
            return _failure(f"{type(error).__name__}: {one_line(error)}")
        entries = self._entries(name, compiled)
        implementations = {operation: sorted(names) for operation, names in sorted(chosen.items())}
        return {**entries, "implementations": implementations, "compile_s": time.perf_counter() - began}

    def _lower(self, name: str) -> Any:
        config, task, mesh = self._config, self._task, self._mesh
        if name in ("prefill", "decode"):
            length = config.data.max_length
            sampler = Sampler(
                task.network, None, eos_id=task.network.config.vocab_size - 1, max_length=length, mesh=mesh
            )
            return sampler.lower(sampler.rows_for(self._rows), length // _PROMPT_FRACTION, length, _SAMPLING.scalars())[
                name
            ]
        with jax.set_mesh(mesh):
            spec, batch = state_spec(task.network, config.train, mesh), batch_sharding(mesh)
            if name == "train":
                step = make_train_step(task, config.train, spec, batch, config.seed)
                return step.lower(spec.abstract, task.batch_shapes(config.batch_size))
            rows = task.batch_shapes(config.batch_size // config.train.grad_accum)
            return make_eval_step(task, spec, batch).lower(spec.abstract["params"], rows)

    def _entries(self, name: str, compiled: jax.stages.Compiled) -> dict[str, Any]:
        memory: Any = compiled.memory_analysis()
        chip, slices = self._topology.chip, self._config.mesh.slices or self._topology.slices
        counts = hlo.count(compiled.as_text() or "", self._mesh.size // slices if slices > 1 else 0)
        arguments = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
        by_hand = self._flops_by_hand(name)
        flops = max(counts.flops, by_hand or 0)
        peak = self._peak()
        seconds = {"memory": counts.bytes / (chip.gb_per_s * _GB), "compute": flops / peak}
        bound_by = max(seconds, key=lambda what: seconds[what])
        return {
            "ok": True,
            "error": None,
            "memory_gib": (arguments + memory.temp_size_in_bytes) / _GIB,
            "argument_gib": arguments / _GIB,
            "temp_gib": memory.temp_size_in_bytes / _GIB,
            "kernels": counts.kernels,
            "hbm_gb": counts.bytes / _GB,
            "tflop": counts.flops / _TERA,
            "tflop_by_hand": None if by_hand is None else by_hand / _TERA,
            "collectives": {
                kind: {
                    "count": n,
                    "mb": counts.collective_bytes[kind] / 1e6,
                    "largest_mb": counts.largest_collective[kind] / 1e6,
                }
                for kind, n in counts.collectives.items()
            },
            "between_slices": {
                kind: {"count": n, "mb": counts.slow_bytes[kind] / 1e6} for kind, n in counts.slow_collectives.items()
            },
            "custom_calls": dict(counts.custom_calls),
            "loops_counted_once": counts.open_loops,
            "roofline_ms": 1000 * seconds[bound_by],
            "bound_by": bound_by,
            "estimated_ms": counts.cycles / chip.ghz / 1e6 if chip.ghz else None,
        }

    def _peak(self) -> float:
        kind, precision = self._mesh.devices.flat[0].device_kind, self._config.train.precision
        # TPUs multiply float32 at JAX's default precision as bf16.
        peak = peak_flops(kind, precision) or peak_flops(kind, "bf16")
        assert peak is not None, kind
        return peak

    def _flops_by_hand(self, name: str) -> float | None:
        """Matrix FLOPs of one device by the formulas, without recomputation."""
        config, network = self._config, self._task.network
        tokens = config.train.batch_tokens / self._mesh.size
        if name == "train":
            return tokens * flops_per_token(config, network)
        if name == "eval":
            return tokens / config.train.grad_accum * forward_flops_per_token(config, network)
        return None


_MEASURED = (
    "memory_gib", "argument_gib", "temp_gib", "kernels", "hbm_gb", "tflop", "tflop_by_hand", "collectives",
    "between_slices", "custom_calls", "loops_counted_once", "roofline_ms", "bound_by", "estimated_ms",
    "implementations", "compile_s",
)  # fmt: skip


def _failure(error: str) -> dict[str, Any]:
    return {"ok": False, "error": error, **dict.fromkeys(_MEASURED)}


def make(config: dict[str, Any], topology: str, rows: int) -> Compiler:
    """Returns the compiler of a `Worker`."""
    prepare()
    return Compiler(parse(config), parse_topology(topology), rows)


def _number(x: float | None) -> str:
    """Three digits at least; empty for None."""
    return "" if x is None else f"{x:,.0f}" if x >= 1000 else f"{x:.3g}"


_ROWS: tuple[tuple[str, Callable[[dict[str, Any]], str]], ...] = (
    ("memory of a device, GiB", lambda p: f"{p['memory_gib']:.2f}"),
    ("  state, weights and batch", lambda p: f"{p['argument_gib']:.2f}"),
    ("  temporary", lambda p: f"{p['temp_gib']:.2f}"),
    ("kernels", lambda p: f"{p['kernels']:,}"),
    ("device memory traffic, GB", lambda p: _number(p["hbm_gb"])),
    ("matrix products, TFLOP", lambda p: _number(p["tflop"])),
    ("  by hand", lambda p: _number(p["tflop_by_hand"])),
    ("time at peak rates, ms", lambda p: _number(p["roofline_ms"])),
    ("  bound by", lambda p: str(p["bound_by"])),
    ("time estimated by XLA, ms", lambda p: _number(p["estimated_ms"])),
    ("compilation, s", lambda p: f"{p['compile_s']:.0f}"),
)


def report(result: dict[str, Any]) -> str:
    """Formats the result of `compile_programs` as a table."""
    config, programs = result["config"], result["programs"]
    mesh = " x ".join(f"{axis} {size}" for axis, size in result["mesh"].items())
    lines = [
        f"{result['topology']} ({result['device']}), mesh {mesh}; {config['model']['base']}, "
        f"{config['train']['precision']}; compiled, not run; per device, decode per token",
        f"{'':<28}" + "".join(f"{name:>12}" for name in programs),
    ]
    shown = {name: program for name, program in programs.items() if program["ok"]}
    for title, cell in _ROWS:
        cells = (cell(programs[name]) if name in shown else "-" for name in programs)
        lines.append(f"{title:<28}" + "".join(f"{text:>12}" for text in cells))
    for name, program in programs.items():
        lines.append("")
        if not program["ok"]:
            lines.append(f"{name} does not compile: {program['error']}")
            continue
        chosen = ", ".join(f"{op} {'/'.join(names)}" for op, names in program["implementations"].items())
        moved = ", ".join(f"{kind} {c['count']} ({c['mb']:,.1f} MB)" for kind, c in program["collectives"].items())
        called = ", ".join(f"{target} {n}" for target, n in program["custom_calls"].items())
        lines += [f"{name}: {chosen or 'one implementation of each operation'}", f"  collectives: {moved or 'none'}"]
        if program["between_slices"]:
            slow = (f"{kind} {c['count']} ({c['mb']:,.1f} MB)" for kind, c in program["between_slices"].items())
            lines.append(f"  between slices: {', '.join(slow)}")
        lines.append(f"  library and hand-written kernels: {called or 'none'}")
        if program["loops_counted_once"]:
            lines.append(f"  loops of unknown length, counted once: {program['loops_counted_once']}")
    return "\n".join(lines)
