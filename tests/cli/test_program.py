"""How commands end: one line and a code for every error, whatever the standard streams and the environment are."""

import os
import subprocess
import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

from psann_jax import __main__
from psann_jax.cli import program
from psann_jax.utils.errors import UserError
from tests.support.processes import TESTS, environment

ROOT = TESTS.parent
QUICKSTART = f"--config={ROOT}/configs/quickstart.py"


def end(monkeypatch, capsys, error, argv=("train",)):
    """Runs a command that raises; returns the code and what it printed to standard error."""

    def dispatch(argv):
        raise error

    monkeypatch.setattr(program, "dispatch", dispatch)
    code = program.exit_code(argv)
    return code, capsys.readouterr().err


def run(*arguments, variables=(), **options):
    """Runs a command in a process of its own."""
    command = [sys.executable, "-m", "psann_jax", *arguments]
    settings = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "timeout": 120, **options}
    return subprocess.run(command, env={**environment(), **dict(variables)}, check=False, **settings)


# --- errors ---------------------------------------------------------------------------------------------


def test_a_folder_that_is_not_installed_is_one_line(monkeypatch, capsys):
    def version(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(program, "version", version)
    code, error = end(monkeypatch, capsys, AssertionError("the command has begun"))
    assert (code, error) == (2, f"error: psann_jax: is not installed, only found in {ROOT}; pip install -e {ROOT}\n")


def test_foreseen_ends_are_one_line(monkeypatch, capsys):
    assert end(monkeypatch, capsys, UserError("x: is wrong")) == (2, "error: x: is wrong\n")
    assert end(monkeypatch, capsys, UserError("a\nb: is wrong")) == (2, "error: a b: is wrong\n")
    assert end(monkeypatch, capsys, KeyboardInterrupt()) == (130, "interrupted\n")
    assert end(monkeypatch, capsys, BrokenPipeError()) == (1, "")
    assert end(monkeypatch, capsys, SystemExit(3)) == (3, "")
    full = OSError(28, "No space left on device")
    assert end(monkeypatch, capsys, full) == (2, "error: the output: cannot be written: No space left on device\n")
    long = OSError(36, "File name too long", "x" * 304)
    name = "x" * 100
    assert end(monkeypatch, capsys, long) == (2, f"error: {name}...: cannot be used: File name too long\n")
    forbidden = PermissionError(13, "Permission denied", "/root/run")
    assert end(monkeypatch, capsys, forbidden) == (2, "error: /root/run: cannot be used: Permission denied\n")


@pytest.mark.parametrize("workdir", ["given", "missing", "default", "none"])
def test_an_unforeseen_error_leaves_its_traceback_in_a_file(workdir, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path / "temporary"))
    for folder in ("temporary", "run", "runs/mine"):
        (tmp_path / folder).mkdir(parents=True)
    argv, folder = {
        "given": (["evaluate", "--workdir", "run"], "run"),
        "missing": (["evaluate", "--workdir=elsewhere"], "temporary"),
        "default": (["train", "--config=configs/mine.py"], "runs/mine"),
        "none": (["selftest"], "temporary"),
    }[workdir]
    code, shown = end(monkeypatch, capsys, ZeroDivisionError("a\nlong story"), argv)
    (file,) = tmp_path.rglob("traceback_*.txt")
    assert file.parent == tmp_path / folder
    assert code == 1
    named = file if folder == "temporary" else file.relative_to(tmp_path)
    assert shown == f"error: unexpected ZeroDivisionError: a; traceback: {named}\n"
    content = file.read_text()
    assert f"psann-jax {' '.join(argv)}\npsann_jax " in content
    assert content.rstrip().endswith("ZeroDivisionError: a\nlong story")


def test_ctrl_c_before_a_command_begins_is_one_line(monkeypatch, capsys):
    def interrupt(argv):
        raise KeyboardInterrupt

    monkeypatch.setattr("psann_jax.cli.program.run_program", interrupt)
    with pytest.raises(SystemExit) as ended:
        __main__.run(["evaluate"])
    assert ended.value.code == 130
    assert capsys.readouterr().err == "interrupted\n"


CTRL_C_DURING_GARBAGE_COLLECTION = """
import gc, os, signal, time
from psann_jax.cli import program

def callback(phase, info):
    gc.callbacks.remove(callback)
    os.kill(os.getpid(), signal.SIGINT)
    for _ in range(1000): pass  # here Python raises KeyboardInterrupt, and discards it

def dispatch(argv):
    gc.callbacks.append(callback)
    gc.collect()
    print("discarded", flush=True)
    time.sleep(60)

program.restart_tuned, program.dispatch = lambda: None, dispatch
program.run_program(["train"])
"""


def test_ctrl_c_is_not_lost_in_a_callback_of_the_garbage_collector(default_signals):
    command = [sys.executable, "-c", CTRL_C_DURING_GARBAGE_COLLECTION]
    ended = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=50, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (130, "discarded\n", "interrupted\n")


def test_a_variable_shows_tracebacks(monkeypatch, capsys):
    monkeypatch.setenv("PSANN_JAX_TRACEBACK", "1")
    code, shown = end(monkeypatch, capsys, UserError("x: is wrong"))
    assert code == 2
    assert shown.startswith("Traceback")
    assert shown.endswith("error: x: is wrong\n")


def test_no_place_for_a_traceback(monkeypatch, capsys):
    monkeypatch.setattr("tempfile.gettempdir", lambda: "/nowhere")
    code, shown = end(monkeypatch, capsys, ValueError(""), ["selftest"])
    assert (code, shown.count("\n")) == (1, 1)
    assert shown.startswith("error: unexpected ValueError: ValueError; with PSANN_JAX_TRACEBACK=1 ")


# --- standard streams -----------------------------------------------------------------------------------


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&-", "<&- >&- 2>&-"])
def test_closed_streams(closed):
    command = f"{sys.executable} -m psann_jax train {QUICKSTART} --print_config {closed}"
    done = subprocess.run(command, shell=True, env=environment(), capture_output=True, check=False, timeout=120)
    assert (done.returncode, done.stderr) == (0, b"")
    assert (b"train.lr" in done.stdout) == (">&-" not in closed.split())


def test_files_do_not_get_the_numbers_of_closed_streams(tmp_path):
    """Otherwise what libraries print to 1 and 2 would land in a checkpoint."""
    script = (
        "from psann_jax.cli.program import _open_streams as f; f(); print(open('x', 'w').fileno(), file=open('y', 'w'))"
    )
    command = f'{sys.executable} -c "{script}" <&- >&- 2>&-'
    subprocess.run(command, shell=True, env=environment(), cwd=tmp_path, check=True, timeout=60)
    assert int((tmp_path / "y").read_text()) > 2


def test_a_closed_pipe_is_no_error():
    reading, writing = os.pipe()
    os.close(reading)
    done = run("train", QUICKSTART, "--print_config", stdout=writing)
    os.close(writing)
    assert (done.returncode, done.stderr) == (1, b"")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_device_is_one_line():
    with open("/dev/full", "w") as full:
        done = run("train", QUICKSTART, "--print_config", stdout=full)
        short = run("--help", stdout=full)
    for ended in (done, short):
        assert ended.returncode == 2
        assert ended.stderr.endswith(b"cannot be written: No space left on device\n")
        assert ended.stderr.count(b"\n") == 1


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_any_text_can_be_printed_in_any_encoding(encoding):
    flags = (QUICKSTART, "--config.data.text_field=\N{GRINNING FACE}\N{CYRILLIC CAPITAL LETTER ZHE}", "--print_config")
    done = run("train", *flags, variables={"PYTHONIOENCODING": encoding})
    assert done.returncode == 0
    assert b"data.text_field=\\U0001f600\\u0416\n" in done.stdout
    done = run("train", "--config=\N{GRINNING FACE}.py", variables={"PYTHONIOENCODING": encoding})
    assert (done.returncode, done.stderr) == (2, b"error: \\U0001f600.py: there is no such config file\n")


# --- environment ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "platforms", ["cuda", *(pytest.param(p, marks=pytest.mark.slow) for p in ("nonsense", "cpu,nonsense"))]
)
def test_an_absent_platform_is_named(platforms, tmp_path):
    done = run("bench", "layout", QUICKSTART, variables={"JAX_PLATFORMS": platforms}, cwd=tmp_path)
    expected = f"error: JAX_PLATFORMS: is '{platforms}', but this machine has cpu; change it or unset it\n"
    assert (done.returncode, done.stderr.decode()) == (2, expected)


@pytest.mark.parametrize("backend", ["ipympl", "nonsense", "module://nonsense"])
def test_the_backend_of_a_notebook_does_not_matter(backend, tmp_path):
    script = (
        "import sys\nfrom psann_jax.plots.loss_curve import plot_loss_curve\n"
        "from psann_jax.plots import sine, style, sudoku\nassert 'matplotlib.pyplot' not in sys.modules\n"
    )
    command = [sys.executable, "-c", script]
    done = subprocess.run(
        command, env={**environment(), "MPLBACKEND": backend}, capture_output=True, check=False, timeout=120
    )
    assert (done.returncode, done.stderr) == (0, b"")
