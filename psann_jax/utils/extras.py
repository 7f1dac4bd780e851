"""Optional dependencies: which extra installs a module, and the error when it is missing."""

from importlib.util import find_spec

from psann_jax.utils.errors import UserError

# Importable module -> the extra in pyproject.toml that installs it.
EXTRA_OF = {
    "alembic": "mlflow",
    "datasets": "hf",
    "gcsfs": "buckets",
    "lm_eval": "lm_eval",
    "mlflow": "mlflow",
    "numba": "sudoku",
    "plotly": "coordinates",
    "psann": "parity",
    "psannlm": "parity",
    "ray": "ray",
    "s3fs": "buckets",
    "sentencepiece": "sentencepiece",
    "sqlalchemy": "mlflow",
    "starlette": "serve",
    "tensorflow_datasets": "tfds",
    "torch": "torch",
    "trackio": "trackio",
    "uvicorn": "serve",
    "wandb": "wandb",
}


def is_installed(module: str) -> bool:
    """Returns whether a module can be imported, without importing it."""
    return find_spec(module) is not None


def require_extra(what: str, *modules: str, extra: str | None = None) -> None:
    """Checks that optional modules are installed, without importing them.

    Call it where a feature starts, so that a missing package ends a command before any work is done.

    Args:
      what: the setting, flag or file that needs the modules; the error message starts with it.
      modules: names as imported.
      extra: the extra to recommend; by default the one that installs the first missing module.

    Raises:
      UserError: a module is missing; the message names the modules and the pip command.
    """
    missing = [name for name in modules if not is_installed(name)]
    if missing:
        extra = extra or EXTRA_OF[missing[0]]
        raise UserError(f"{what}: needs {', '.join(missing)}; pip install 'psann_jax[{extra}]'")
