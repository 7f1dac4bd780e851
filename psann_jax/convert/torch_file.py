"""Reads PyTorch checkpoints with its restricted unpickler, which creates only arrays and plain values."""

import pickle
from pathlib import Path
from typing import Any

from psann_jax.utils.errors import UserError
from psann_jax.utils.extras import require_extra


def load_torch(path: Path) -> dict[str, Any]:
    """Returns the content of a .pt file, a dict.

    Raises:
      UserError: torch is not installed, or the file is missing, contains code or is not a checkpoint.
    """
    require_extra(str(path), "torch")
    import torch

    if not path.is_file():
        raise UserError(f"{path}: there is no such file")
    try:
        payload = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path}: is refused, because it is not a checkpoint or would run its own code when read"
        ) from error
    except Exception as error:  # torch raises exceptions of many types
        reason = str(error).partition("\n")[0]
        raise UserError(f"{path}: is not a complete PyTorch checkpoint: {reason}") from error
    if not isinstance(payload, dict) or not all(isinstance(key, str) for key in payload):
        raise UserError(f"{path}: is not a checkpoint of psannlm or of a Newton Gravity Transformer")
    return payload
