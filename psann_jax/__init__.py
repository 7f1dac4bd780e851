"""psann_jax: sine-activated language models and other unusual sequence models in JAX."""

from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from psann_jax.api import Callback, psannLM, psannLMDataPrep

    __version__: str

__all__ = ["Callback", "__version__", "psannLM", "psannLMDataPrep"]


def __getattr__(name: str) -> Any:
    # Imported on first access, so that the commands can report an error in a config without loading JAX.
    if name == "__version__":
        return version("psann_jax")
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from psann_jax import api

    return getattr(api, name)
