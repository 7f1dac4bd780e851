"""The stages of psann-jax bench accelerator: what is checked and measured on one GPU or TPU, and in which order."""

from typing import Any

from psann_jax.bench.accelerator import Stage

# Sizes for --tiny, which tries the command itself, on any machine.
_TINY_TEXT = (
    "model.d_model=32", "model.n_layers=2", "model.n_heads=2", "model.d_mlp=64", "data.max_length=64",
    "data.tokenizer.kind=bytes", "data.tokenizer.vocab_size=32000", "train.batch_tokens=256", "train.grad_accum=1",
    "train.steps=3", "train.warmup_steps=1", "eval.max_tokens=512",
)  # fmt: skip
_TINY_SUDOKU = (
    "model.d_model=16", "model.n_layers=1", "model.n_heads=2", "model.d_mlp=16", "model.iterations=2",
    "data.counts=(40,8,0,0,0)", "data.curriculum=mixed", "train.batch_tokens=648", "train.grad_accum=1",
)  # fmt: skip
_TINY_SELFTEST = ("--only=GPU-01", "--scale=64")

_SEEDS = (1, 2)
_DEFAULT_TEXT = ("--config.data.sources=builtin:python", "--config.data.valid_sources=()")  # needs no network


def stages(*, tiny: bool = False) -> list[Stage]:
    """Returns all stages, the most valuable first: agreement of kernels, speeds, the self-test, training runs."""
    speed = ("--steps=3",) if tiny else ("--steps=20",)
    text = _overrides(_TINY_TEXT) if tiny else ()
    large = (*text, "--config.train.grad_accum=1", "--config.train.batch_tokens=" + ("256" if tiny else "32768"))
    return [
        _kernels("waveresnet", "waveresnet_small", *_micro_batch(text, "16384", tiny)),
        _kernels("ngt", "w3_25m/ngt", *_micro_batch(text, "16384", tiny), "--config.train.precision=bf16"),
        _kernels("spectral", "bases/sgrpsann", *_micro_batch(text, "8192", tiny), "--config.train.precision=bf16"),
        _kernels("sudoku", "sudoku/cosine_no_sam", *_sudoku(512, tiny)),
        _throughput("waveresnet_small", "waveresnet_small", *speed, *(text or ("--config.train.grad_accum=4",))),
        _throughput("transformer_350m", "transformer_350m", *speed, *large),
        _throughput("ngt", "w3_25m/ngt", *speed, "--against=configs/w3_25m/vanilla.py", "--batch_tokens=0",
                    *text, *(override.replace("--config.", "--against.") for override in text)),
        *(_throughput(f"sudoku_{n}", "sudoku/cosine_no_sam", *speed, *_sudoku(n, tiny)) for n in (1024, 4096)),
        _generation("proxy_13m", *text, tiny=tiny),
        _generation("transformer_350m", *text, tiny=tiny),
        # A folder of its own for each start, as the self-test refuses one that has results.
        Stage("selftest", ("selftest", "--out={out}/selftest/{time}", *(_TINY_SELFTEST if tiny else ())),
              _show_selftest, minutes=4),
        *(_training(f"proxy_13m_{base}_{seed}", "proxy_13m", f"--config.model.base={base}", f"--config.seed={seed}",
                    *(("--config.model.wave.interleave=True",) if base == "waveresnet" else ()), *text)
          for seed in _SEEDS for base in ("transformer", "waveresnet")),
        *(_training(f"w3_25m_{name}", f"w3_25m/{name}", *_DEFAULT_TEXT, *text) for name in ("ngt", "vanilla")),
        _training("sudoku_recipe", "sudoku/cosine_no_sam", *_sudoku(4096, tiny),
                  *(("--config.train.steps=3",) if tiny else ())),
    ]  # fmt: skip


def _overrides(settings: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(f"--config.{setting}" for setting in settings)


def _micro_batch(text: tuple[str, ...], tokens: str, tiny: bool) -> tuple[str, ...]:
    return (*text, "--config.train.grad_accum=1", f"--config.train.batch_tokens={'256' if tiny else tokens}")


def _sudoku(puzzles: int, tiny: bool) -> tuple[str, ...]:
    return _overrides(_TINY_SUDOKU) if tiny else (f"--config.train.batch_tokens={81 * puzzles}",)


def _kernels(name: str, config: str, *flags: str) -> Stage:
    return Stage(f"kernels/{name}", ("bench", "kernels", f"--config=configs/{config}.py", *flags), _show_kernels)


def _throughput(name: str, config: str, *flags: str) -> Stage:
    return Stage(f"speed/{name}", ("bench", "throughput", f"--config=configs/{config}.py", *flags), _show_throughput)


def _generation(config: str, *flags: str, tiny: bool) -> Stage:
    sizes = ("--prompt_tokens=8", "--max_new_tokens=8", "--repeats=2") if tiny else ("--repeats=5",)
    command = ("bench", "generate", f"--config=configs/{config}.py", *flags, "--batch=1", "--batch=8", *sizes)
    return Stage(f"speed/generate_{config}", command, _show_generation)


def _training(name: str, config: str, *flags: str) -> Stage:
    command = ("train", f"--config=configs/{config}.py", f"--workdir={{out}}/runs/{name}", *flags)
    return Stage(f"train/{name}", command, _show_training, minutes=2, is_run=True)


def _show_kernels(result: dict[str, Any]) -> str:
    worst = max(result["errors"], key=lambda name: float(result["errors"][name]["kernels"]))
    used = ", ".join(f"{op} {'/'.join(names)}" for op, names in result["implementations"].items()) or "no kernels"
    verdict = "agree" if result["ok"] else f"DIFFER in {', '.join(result['failed'][:3])}"
    error = result["errors"][worst]
    return f"{verdict}; {used}; largest error {error['kernels']:.2g} ({worst}), plain {error['plain']:.2g}"


def _show_throughput(result: dict[str, Any]) -> str:
    mfu = "" if result["mfu"] is None else f", MFU {result['mfu']:.1%}"
    ratio = "" if result["ratio"] is None else f", {result['ratio']:.2f} times {result['peer']}"
    times = result["kernel_times"]
    device = "" if times is None else f", {times['device_ms']:.1f} of {1000 * result['step_s']:.1f} ms in kernels"
    memory = f"{result['peak_memory_mb'] / 1e3:.1f} GB at the peak, {result['compiled_memory_mb'] / 1e3:.1f} compiled"
    return f"{result['tokens_per_s']:,.0f} tokens/s{mfu}{device}{ratio}; {memory}; {result['device']}"


def _show_generation(result: dict[str, Any]) -> str:
    cases = (f"{row['contenders'][0]['tokens_per_s']:,.0f} at batch {row['batch']}" for row in result["results"])
    return f"{', '.join(cases)} tokens/s; {result['device']}"


def _show_selftest(result: dict[str, Any]) -> str:
    return ", ".join(f"{record['id']} {record['status']}" for record in result["results"])


def _show_training(result: dict[str, Any]) -> str:
    return f"validation loss {result['val_loss']:.4f} after {result['steps']:,} steps"
