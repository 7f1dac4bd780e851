"""The commands in the documents: finds them, says what each needs, and shortens them so that a test can run them."""

import importlib.util
import re
import shlex
import shutil
from pathlib import Path

from psann_jax.config.files import load_config_file
from psann_jax.config.io import flatten

ROOT = Path(__file__).parent.parent.parent

# Programs that a test does not start, and why.
_NOT_STARTED = {
    "pip": "changes the environment",
    "pre-commit": "changes the clone",
    "python -m venv": "makes an environment",
    ".": "activates an environment",
    "pytest": "runs the tests",
    ".ci/run": "runs the tests",
    "ruff": "is run by .ci/run",
    "mypy": "is run by .ci/run",
    "mkdocs": "is run by .ci/run",
    "curl": "needs the network",
    "git": "needs the network",
    "sbatch": "needs SLURM",
    "nvidia-smi": "needs a GPU",
    "tensorboard": "runs until it is stopped",
    "psann-jax serve": "runs until it is stopped",
}
# A part of a command -> the module it needs.
_NEEDS = {
    "--peer=psannlm": "psannlm",
    "--peer=torch": "torch",
    ".pt ": "torch",
    "--topology=h100": "jax_cuda13_plugin",
    "--topology=v": "libtpu",
}
_NEEDS_NETWORK = ("lm_eval",)

# Settings of a run that takes seconds; of each config, those that it has.
_TINY = {
    "model.d_model": "16",
    "model.n_layers": "1",
    "model.n_heads": "2",
    "model.d_mlp": "32",
    "data.max_length": "32",
    "data.tokenizer.vocab_size": "300",
    "data.sources": "notes.txt",
    "data.valid_sources": "()",
    "data.valid_fraction": "0.1",
    "train.steps": "2",
    "train.warmup_steps": "1",
    "train.batch_tokens": "256",
    "train.grad_accum": "1",
    "train.precision": "fp32",
    "eval.every": "2",
    "eval.max_tokens": "512",
}
_TINY_SUDOKU = {
    "model.iterations": "2",
    "data.counts": "(40,0,0,0,0)",
    "data.extra_clues": "45",
    "data.curriculum": "mixed",
    "train.batch_tokens": "648",
    "eval.max_tokens": "648",
}
# What the test replaces only where the command has not chosen a text of its own.
_SOURCES = ("data.sources", "data.valid_sources", "data.files", "data.valid_files")
# Flags that shorten a command.
_FLAGS = {
    "generate": "--max_new_tokens=4",
    "solve": "--iterations=4",
    "stability": "--iterations=4 --max_puzzles=8 --radii=1",
    "sweep": "--seeds=1",
    "selftest": "--only=GPU-08",
    "bench throughput": "--steps=1",
    "bench devices": "--steps=1 --count=1 --count=2",
    "bench generate": "--repeats=1 --batch=1 --prompt_tokens=4 --max_new_tokens=4",
    "bench serve": "--repeats=1 --clients=2 --prompt_tokens=4 --max_new_tokens=4",
    "bench memory": "--batch_sizes=2",
    "bench accelerator": "--tiny --minutes=2",
}


def blocks(path, language):
    """The code blocks of a page in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", path.read_text(), re.MULTILINE | re.DOTALL)


def lines(path):
    """The command lines of a page as written, without comments: those of its shell blocks, then complete ones in code
    spans; "A && B" are two."""
    text = [line for block in blocks(path, "sh") for line in block.replace("\\\n", " ").splitlines()]
    prose = re.sub(r"^```.*?^```$", "", path.read_text(), flags=re.MULTILINE | re.DOTALL)
    spans = [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose)]
    text += [span for span in spans if re.match(r"psann-jax .*--|python -[mc] .* ", span) and not _placeholder(span)]
    parts = [part.strip() for line in text for part in re.sub(r"(^|\s)#.*$", "", line).split(" && ")]
    return [part for part in parts if part]


def _placeholder(span):
    return "..." in span or "=FILE" in span or "COMMAND" in span


def obstacle(line):
    """Why a command cannot be run here; "" if it can."""
    for program, why in _NOT_STARTED.items():
        if re.match(rf"(\w+=\S* )*{re.escape(program)}( |$)", line):
            return f"{program} {why}"
    if any(word in line for word in _NEEDS_NETWORK):
        return "needs the network"
    for part, module in _NEEDS.items():
        if part in f"{line} " and importlib.util.find_spec(module) is None:
            return f"needs {module}"
    return ""


def stands_alone(line):
    """Whether a command needs more than this package, and no command before it."""
    return bool(obstacle(line)) or any(part in f"{line} " for part in _NEEDS)


def shortened(line):
    """A command with flags and settings behind it that make it take seconds; the last one of a flag counts."""
    line = re.sub(r"^launch/local.sh \d+", "launch/local.sh 2", line)
    words = re.sub(r"^.*?(psann-jax|python -m psann_jax(\.main)?) ", "", line)
    if words == line:
        return line
    command = "train" if "psann_jax.main" in line else " ".join(words.split()[: 2 if words.startswith("bench") else 1])
    flags = [line, _FLAGS.get(command, "")]
    config = re.search(r"--config=(\S+)", line)
    if config or command in ("bench generate", "bench serve"):
        flags.append(_overrides(line, config[1] if config else "configs/proxy_13m.py", command))
    return " ".join(filter(None, flags))


def _overrides(line, config_file, command):
    config = load_config_file(str(ROOT / config_file))
    varied, flags = set(), []
    if "contenders" in config:
        contenders = dict(config.contenders)
        varied = {*dict(config.grid), *(key for own in contenders.values() for key, _ in own)}
        chosen = re.search(r"--bases=(\S+)", line)
        flags.append("--bases=" + ",".join((chosen[1].split(",") if chosen else list(contenders))[:2]))
        config = config.common
    tiny = _TINY | (_TINY_SUDOKU if config.model.base == "sudoku" else {})
    known = dict(flatten(config.to_dict()))
    given = {key for key in _SOURCES if f"config.{key}=" in line or ("$T" in line and key == "data.sources")}
    if "$V" in line or "data.valid_sources" in given:
        given |= {"data.valid_sources", "data.valid_fraction"}
    if "data.files" in given:
        given |= {"data.counts", "data.extra_clues", "data.valid_fraction", "data.curriculum"}
    sizes = [key for key in tiny if key in known and key not in varied and key not in given]
    if command == "bench throughput" and "--batch_tokens" in line:
        flags.append(f"--batch_tokens={tiny['train.batch_tokens']}")
    return " ".join([*flags, *(f"--config.{key}={shlex.quote(tiny[key])}" for key in sizes)])


def needed_runs(line):
    """The workdirs of trained runs that a command reads."""
    if re.search(r"psann-jax (train|sweep)|psann_jax\.main", line):
        return []
    return [path for path in re.findall(r"--(?:workdir|from)=(\S+)", line) if "." not in Path(path).name]


def training(workdir):
    """A command that trains a run for those pages that use one which another page has trained."""
    config = "configs/bases/ngt.py" if "ngt" in workdir else "configs/quickstart.py"
    return shortened(f"psann-jax train --config={config} --workdir={workdir}")


def clone(directory):
    """Makes a directory in which the commands can be given as in a clone of the repository."""
    for name in ("configs", "launch"):
        shutil.copytree(ROOT / name, directory / name, ignore=shutil.ignore_patterns("__pycache__"))
