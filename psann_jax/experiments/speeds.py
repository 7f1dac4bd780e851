"""Training speeds of configs on this device, for the budget "seconds".

All that needs the device runs in child processes: an accelerator belongs to one process at a time, and the runs of the
sweep need it.
"""

import functools
import hashlib
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from psann_jax.bench.config_file import write_config_file
from psann_jax.config import Config
from psann_jax.config.io import to_dict
from psann_jax.utils.errors import UserError
from psann_jax.utils.files import read_json, write_json

_STEPS = 8
# Settings that change neither the program of an update nor the shape of a batch.
_FREE = {
    "train": ("steps", "lr", "warmup_steps", "max_bad_steps", "log_every"),
    "data": (
        "sources",
        "valid_sources",
        "valid_fraction",
        "split_seed",
        "stream",
        "shuffle_buffer",
        "cache_dir",
        "num_workers",
    ),
}


class Speeds:
    """Measures a config's tokens/s once per device and keeps it in speeds.json."""

    def __init__(self, workdir: Path) -> None:
        self._path = workdir / "speeds.json"

    def __call__(self, config: Config) -> float:
        """Returns the tokens/s of a config on this device.

        Raises:
          UserError: the measurement failed, or speeds.json is damaged or cannot be written.
        """
        known = read_json(self._path) if self._path.exists() else {}
        key = f"{_program(config)} on {_device()}"
        if key not in known:
            known[key] = _measure(config)
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_json(self._path, known)
        return float(known[key]["tokens_per_s"])


def _program(config: Config) -> str:
    """A name of the training step: the base, and a hash of all settings that act on the step."""
    settings = to_dict(config)
    used = {section: dict(settings[section]) for section in ("model", "data", "train", "mesh")}
    for section, names in _FREE.items():
        for name in names:
            used[section].pop(name, None)
    digest = hashlib.sha256(json.dumps(used, sort_keys=True).encode()).hexdigest()
    return f"{config.model.base} {digest[:16]}"


@functools.cache
def _device() -> str:
    """The devices and the JAX version, from a short-lived process of its own."""
    code = (
        "import jax; from psann_jax.train.hardware import device_description as d; print(d(), 'jax', jax.__version__)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise UserError("no device can be used, which the budget seconds needs")
    return done.stdout.strip().splitlines()[-1]


def _measure(config: Config) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        path = write_config_file(to_dict(config), Path(folder))
        result = Path(folder, "speed.json")
        command = [sys.executable, "-m", "psann_jax", "bench", "throughput", f"--config={path}", f"--json={result}"]
        if subprocess.run([*command, f"--steps={_STEPS}"], check=False).returncode:
            raise UserError(f"{config.model.base}: measuring its speed failed, which the budget seconds needs")
        found = read_json(result)
        return {name: found[name] for name in ("tokens_per_s", "device", "versions")}
