"""PyTorch's checkpoint files: pickles, read by its restricted unpickler, which makes arrays and plain values only."""

import pickle
from pathlib import Path
from typing import Any

from psann_jax.utils.errors import UserError
from psann_jax.utils.extras import require_extra


def load_torch(path: Path) -> dict[str, Any]:
    """What a .pt file holds, by names.

    Raises:
      UserError: no torch, no such file, or a file of something else or with other code in it.
    """
    require_extra(str(path), "torch")
    import torch

    if not path.is_file():
        raise UserError(f"{path}: there is no such file")
    try:
        payload = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path}: is refused: it is no checkpoint, or one that would run code of its own when read"
        ) from error
    except Exception as error:  # torch raises what its many parts raise
        reason = str(error).partition("\n")[0]
        raise UserError(f"{path}: is not a whole checkpoint of torch: {reason}") from error
    if not isinstance(payload, dict) or not all(isinstance(key, str) for key in payload):
        raise UserError(f"{path}: is not a checkpoint of psannlm or of a Newton Gravity Transformer")
    return payload
