"""The metadata of the package, the optional dependencies, and the files that state the same facts."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from psann_jax.utils import extras
from psann_jax.utils.errors import UserError
from psann_jax.utils.extras import EXTRA_OF, require_extra

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]


def name_of(requirement):
    return re.match(r"[\w.-]+", requirement)[0].lower().replace("-", "_")


def test_every_optional_module_is_in_its_extra():
    for module, extra in EXTRA_OF.items():
        package = {"mlflow": "mlflow_skinny"}.get(module, module)
        assert package in map(name_of, EXTRAS[extra]), module


def test_no_optional_module_is_a_core_dependency():
    assert EXTRA_OF.keys().isdisjoint(map(name_of, PROJECT["dependencies"]))


def test_the_installation_page_lists_every_extra():
    listed = re.findall(r"^\| `([\w-]+)` \|", (ROOT / "docs/installation.md").read_text(), re.MULTILINE)
    assert sorted(listed) == sorted(EXTRAS)


def test_all_files_state_the_same_version():
    version = PROJECT["version"]
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text()
    assert re.search(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)[1] == version


def test_the_workflow_and_the_classifiers_name_the_same_pythons():
    prefix = "Programming Language :: Python :: 3."
    classified = [c.rpartition(" ")[2] for c in PROJECT["classifiers"] if c.startswith(prefix)]
    rows = re.search(r"python: \[(.*)\]", (ROOT / ".github/workflows/ci.yml").read_text())[1]
    assert re.findall(r"[\d.]+", rows) == classified
    assert PROJECT["requires-python"] == f">={classified[0]}"


def test_typed():
    assert (ROOT / "psann_jax/py.typed").is_file()


# --- absent extras ----------------------------------------------------------------------------------------


def test_a_missing_module_is_named_with_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "numba", None)
    with pytest.raises(UserError) as caught:
        require_extra("Sudoku puzzles", "numba")
    assert str(caught.value) == "Sudoku puzzles: needs numba; pip install 'psann_jax[sudoku]'"


def test_several_missing_modules_are_named_together(monkeypatch):
    monkeypatch.setattr(extras, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"^--peer: needs torch, psann; pip install 'psann_jax\[parity\]'$"):
        require_extra("--peer", "torch", "psann", extra="parity")


def test_an_installed_module_is_not_imported():
    code = "import sys; from psann_jax.utils.extras import require_extra; require_extra('x', 'numba'); "
    code += "sys.exit('numba' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def run_without(module, arguments):
    """Runs psann-jax in a process in which a module cannot be imported."""
    code = f"import runpy, sys; sys.modules[{module!r}] = None; sys.argv[0] = 'psann-jax'; "
    code += "runpy.run_module('psann_jax', run_name='__main__')"
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)


@pytest.mark.parametrize(
    ("module", "arguments"),
    [
        ("numba", ["train", "--config=configs/sudoku/quickstart.py", "--config.data.cache_dir={tmp}"]),
        ("lm_eval", ["lm_eval", "--workdir={tmp}", "--tasks=lambada_openai"]),
        ("plotly", ["coordinates", "--workdir={tmp}"]),
        ("starlette", ["serve", "--workdir={tmp}"]),
        ("datasets", ["train", "--config=configs/quickstart.py", "--config.data.sources=('hf:a/b',)"]),
    ],
)
def test_a_command_without_its_extra_is_one_line_and_code_2(module, arguments, tmp_path):
    arguments = [argument.format(tmp=tmp_path) for argument in arguments]
    if arguments[0] == "train":
        arguments.append(f"--workdir={tmp_path / 'run'}")
    done = run_without(module, arguments)
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert f"needs {module}" in last
    assert last.endswith(f"; pip install 'psann_jax[{EXTRA_OF[module]}]'")
    assert "Traceback" not in done.stderr
    assert done.returncode == 2


def test_the_core_needs_no_extra():
    """Nothing that training on text imports is optional."""
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({list(EXTRA_OF)!r})); import psann_jax.cli.train, psann_jax.api"
    )
    code += ", psann_jax.runs.training, psann_jax.experiments.runner"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
