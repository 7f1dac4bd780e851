"""Weights that a run starts from, as the training loop gets them."""

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.multihost_utils import process_allgather
from jax.sharding import Mesh
from jax.tree_util import keystr, tree_leaves_with_path

from psann_jax.data.tokenizer import Tokenizer
from psann_jax.models.network import Network, Params
from psann_jax.train.workdir import INITIAL_WEIGHTS
from psann_jax.utils.errors import UserError
from psann_jax.utils.files import storage_errors, write_json

# In the metadata of a checkpoint: where the weights of its run came from, drawn from the seed or given.
ORIGIN, DRAWN, GIVEN = "initial_weights", "drawn", "given"
GIVEN_SHA256 = "initial_weights_sha256"  # and a hash of those that a caller gave as arrays, otherwise None


class StartingWeights(NamedTuple):
    """Parameters of a new run, and where they come from; without parameters, the run draws them.

    Attributes:
      params: nested dict of host or device arrays with the network's shapes and types, the same in all processes.
      fact: a line about them for the header of the run.
      report: the same in detail, JSON-like; written to the workdir.
    """

    params: Params | None = None
    fact: str = ""
    report: Mapping[str, Any] = MappingProxyType({})

    def write_report(self, workdir: Path) -> None:
        """Writes the report, or deletes that of an earlier start if there is none, in one process.

        Raises:
          UserError: the file cannot be written or deleted.
        """
        path = workdir / INITIAL_WEIGHTS
        if jax.process_index() == 0:
            if self.report:
                write_json(path, dict(self.report))
            else:
                with storage_errors(path):
                    path.unlink(missing_ok=True)


# Called with the network and the mesh, in all processes, unless the run resumes.
ReadWeights = Callable[[Network, Mesh], StartingWeights]


def starting_weights(given: Params | ReadWeights | None, network: Network, mesh: Mesh) -> StartingWeights:
    """Returns given parameters, reading them if necessary; `psann_jax.train.loop.train` has the arguments.

    Raises:
      UserError: a parameter is not finite, as after a training that diverged.
    """
    start = given(network, mesh) if callable(given) else StartingWeights(given)
    if start.params is not None:
        origin = f"train.init_from: {start.report['from']}" if start.report else "the weights to start from"
        with jax.set_mesh(mesh):
            require_finite(start.params, origin)
    return start


def require_finite(params: Params, origin: str) -> None:
    """Raises UserError that begins with `origin` if a parameter, on host or devices, has values that are not finite.

    All processes must call it together if the arrays are divided over them.
    """
    names, arrays = zip(*tree_leaves_with_path(params), strict=True)
    if all(isinstance(a, np.ndarray) for a in arrays):
        finite = [np.isfinite(a).all() for a in arrays]
    else:
        finite = jax.device_get(jax.jit(lambda arrays: [jnp.isfinite(a).all() for a in arrays])(arrays))
    for path, is_finite in zip(names, finite, strict=True):
        if not is_finite:
            name = keystr(path, simple=True, separator=".")
            raise UserError(f"{origin}: {name} has values that are not finite; take an earlier checkpoint")


def origin_of(given: Params | ReadWeights | None) -> dict[str, str | None]:
    """Returns what the checkpoints of a new run say about given parameters; all processes must call it together."""
    if given is None or callable(given):
        return {ORIGIN: DRAWN if given is None else GIVEN, GIVEN_SHA256: None}
    digest = hashlib.sha256()
    for path, array in tree_leaves_with_path(given):
        is_divided = isinstance(array, jax.Array) and not array.is_fully_addressable
        host = np.asarray(process_allgather(array, tiled=True) if is_divided else array)
        digest.update(f"{keystr(path)} {host.dtype} {host.shape} ".encode() + host.tobytes())
    return {ORIGIN: GIVEN, GIVEN_SHA256: digest.hexdigest()}


class Start(Protocol):
    """An opened run or file that another run starts from.

    Attributes:
      tokenizer: the one to encode the text of the new run with; None if its config names one.
    """

    @property
    def tokenizer(self) -> Tokenizer | None:
        """See the attributes."""

    def weights(self, network: Network, mesh: Mesh, seed: int) -> StartingWeights:
        """Returns the parameters for a network, on a mesh; those that it adds are drawn from `seed`."""
