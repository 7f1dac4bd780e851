"""Training speeds of configs on this device, for the budget "seconds"."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import jax

from psann_jax.bench.config_file import write_config_file
from psann_jax.config import Config
from psann_jax.config.io import to_dict
from psann_jax.utils.errors import UserError
from psann_jax.utils.files import read_json, write_json

_STEPS = 8


class Speeds:
    """Measures a config's tokens/s once and keeps it in speeds.json."""

    def __init__(self, workdir: Path) -> None:
        self._path = workdir / "speeds.json"

    def __call__(self, config: Config) -> float:
        """Returns the tokens/s of a config on this device.

        Raises:
          UserError: the measurement failed, or speeds.json is damaged or cannot be written.
        """
        known = read_json(self._path) if self._path.exists() else {}
        key = json.dumps([to_dict(config)[section] for section in ("model", "data", "mesh")], sort_keys=True)
        key += f" {config.train.batch_tokens} {config.train.precision} {jax.default_backend()}"
        if key not in known:
            known[key] = _measure(config)
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_json(self._path, known)
        return float(known[key])


def _measure(config: Config) -> float:
    with tempfile.TemporaryDirectory() as folder:
        path = write_config_file(to_dict(config), Path(folder))
        result = Path(folder, "speed.json")
        command = [sys.executable, "-m", "psann_jax", "bench", "throughput", f"--config={path}", f"--json={result}"]
        if subprocess.run([*command, f"--steps={_STEPS}"], check=False).returncode:
            raise UserError(f"{config.model.base}: measuring its speed failed, which the budget seconds needs")
        return float(read_json(result)["tokens_per_s"])
