"""Models of a server: names, memory, wrong workdirs."""

import pytest

from tests.support.saved import save_run

pytest.importorskip("starlette", reason="needs the extra serve")
pytest.importorskip("uvicorn", reason="needs the extra serve")

from psann_jax.cli import serve
from psann_jax.runs.restore import load_text_run
from psann_jax.serve.served import Limits, Served, by_name
from psann_jax.serve.server import bind
from psann_jax.utils.errors import UserError


def test_models_have_the_names_of_their_folders(tmp_path, monkeypatch):
    (tmp_path / "a" / "run").mkdir(parents=True)
    (tmp_path / "other").symlink_to(tmp_path / "a" / "run")
    monkeypatch.chdir(tmp_path / "a" / "run")
    assert by_name([".", "../../other", "../run/../../a"]).keys() == {"run", "other", "a"}
    with pytest.raises(
        UserError, match=r"^--workdir: .*run and b/run have the same name run; make a link with another$"
    ):
        by_name([tmp_path / "a" / "run", "b/run"])
    assert {name: str(url) for name, url in by_name(["s3://bucket/runs/a", "gs://b/c/"]).items()} == {
        "a": "s3://bucket/runs/a",
        "c": "gs://b/c",
    }


def test_the_start_says_what_a_model_needs(workdirs):
    run = load_text_run(workdirs["wave"])
    served = Served("wave", run, Limits(n_slots=3, max_length=32))
    assert served.describe().startswith("wave: waveresnet, step 6, 10,945 parameters in 0.0 MiB; 3 texts of 32 tokens")
    slots = served.engine.slots
    cache = 3 * (2 * 32 * 16 * 4 + 4 * 16 * 4)  # keys and values; the wave branch's last inputs
    assert slots.nbytes >= cache
    assert Served("wave", run, Limits(n_slots=6, max_length=32)).engine.slots.nbytes == 2 * slots.nbytes
    assert served.run.params == {}, "the sampler has its own"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--max_length=65"], "max_length: is 65, must be from 2 to 64"),
        (["--host=256.0.0.1"], "--host, --port: 256.0.0.1 0 cannot be used"),
        (["--workdir={tmp}/none"], "{tmp}/none: there is no such directory; give the workdir of a run"),
    ],
)
def test_wrong_flags(workdirs, flags, message, tmp_path):
    given = [f"--workdir={workdirs['wave']}", "--port=0", *(flag.format(tmp=tmp_path) for flag in flags)]
    with pytest.raises(UserError) as caught:
        serve.main(given)
    assert str(caught.value).startswith(message.format(tmp=tmp_path))


@pytest.mark.parametrize("flag", ["--slots=0", "--queue=none", "--port=65536", "--port=-1", "--workdri=x"])
def test_flags_that_cannot_be_parsed(flag, capsys):
    with pytest.raises(SystemExit) as end:
        serve._parse(["--workdir=run", flag])
    assert end.value.code == 2
    assert capsys.readouterr().err.startswith(f"error: {flag.partition('=')[0]}: ")


def test_a_port_in_use(workdirs):
    taken = bind("127.0.0.1", 0)
    taken.listen()
    port = taken.getsockname()[1]
    with pytest.raises(UserError, match=f"--host, --port: 127.0.0.1 {port} cannot be used: Address already in use"):
        bind("127.0.0.1", port)
    taken.close()


def test_a_run_of_sudoku_is_refused(tmp_path):
    from psann_jax.config.io import default_config, parse

    config = default_config("sudoku")
    config.model.update(d_model=16, n_heads=2, d_mlp=32)
    save_run(tmp_path / "sudoku", parse(config), {1: 1.0})
    with pytest.raises(UserError, match="is a run of base sudoku, which this command does not support"):
        serve.main([f"--workdir={tmp_path / 'sudoku'}", "--port=0"])
