"""Values of the sine activations before and after training: numbers, figure, command."""

import jax
import numpy as np
import pytest

from psann_jax.cli import sine as command
from psann_jax.config import SineConfig, SudokuConfig
from psann_jax.models.network import build
from psann_jax.plots.sine import draw_sine
from psann_jax.runs.restore import load_text_run
from psann_jax.runs.sine import sine_history, sine_values
from psann_jax.utils.errors import UserError
from tests.support.saved import save_run
from tests.support.tiny import tiny_config
from tests.support.variants import variant


@pytest.mark.parametrize("scan_layers", [True, False])
def test_values_are_the_effective_ones(scan_layers):
    config = variant(
        "waveresnet_dilated", sine=SineConfig(amp_init=1.5, freq_init=2.0, freq_init_std=0.0, damp_init=0.25)
    )
    network = build(config, scan_layers=scan_layers)
    values = sine_values(network, network.init(jax.random.key(0)))
    layers = config.n_layers
    shapes = {module: array.shape for module, array in values.items()}
    assert shapes == {"mlp": (3, layers, config.d_mlp), "wave": (3, layers, config.d_model)}
    for array in values.values():
        for value, want in zip(array, (1.5, 2.0, 0.25), strict=True):
            np.testing.assert_allclose(value, want, rtol=1e-5)


def test_a_sudoku_transformer_has_them_too():
    config = SudokuConfig(d_model=16, n_layers=2, n_heads=2, d_mlp=24, mlp_activation="sine")
    network = build(config)
    values = sine_values(network, network.init(jax.random.key(0)))
    assert {module: array.shape for module, array in values.items()} == {"mlp": (3, 2, 24)}


def test_before_follows_from_the_seed_and_after_from_the_run(tmp_path, capsys):
    config = tiny_config(tmp_path, model__sine__freq_init_std=0.5)
    saved = save_run(tmp_path / "run", config, {4: 1.0})[4]
    run = load_text_run(tmp_path / "run")
    values = sine_history(run)
    draw_sine(tmp_path / "sine.png", values["before"], values["after"], run.step)
    raw = np.asarray(saved["blocks"]["mlp"]["act"]["amplitude"])
    np.testing.assert_allclose(values["after"]["mlp"][0], np.log1p(np.exp(raw)), rtol=1e-5)
    initial = sine_values(run.network, run.network.init(jax.random.key(config.seed)))
    np.testing.assert_allclose(values["before"]["wave"], initial["wave"], rtol=1e-6)
    assert initial["mlp"][1].std() > 0.1
    command.main([f"--workdir={tmp_path / 'run'}"])
    lines = capsys.readouterr().out.splitlines()
    assert (tmp_path / "run" / "sine_parameters.png").read_bytes() == (tmp_path / "sine.png").read_bytes()
    median = np.median(values["after"]["mlp"][2][1])
    assert lines[3].startswith("mlp 2")
    assert lines[3].endswith(f"-> {median:.4f}")


def test_of_a_run_that_started_from_other_weights_only_the_values_after_are_shown(tmp_path, capsys):
    """Those drawn from its seed have never been in it."""
    workdir = tmp_path / "run"
    saved = save_run(workdir, tiny_config(tmp_path, train__init_from="runs/books"), {4: 1.0})[4]
    command.main([f"--workdir={workdir}"])
    title, _, first, *_ = capsys.readouterr().out.splitlines()
    assert title.startswith("medians after training, which started from runs/books")
    amplitude = np.median(np.log1p(np.exp(np.asarray(saved["blocks"]["mlp"]["act"]["amplitude"]))), axis=1)
    assert first.split()[:3] == ["mlp", "1", f"{amplitude[0]:.4f}"]
    assert "->" not in first
    assert (workdir / "sine_parameters.png").exists()


def test_errors_name_the_cause(tmp_path):
    save_run(tmp_path / "run", tiny_config(tmp_path), {4: 1.0})
    with pytest.raises(UserError, match=r"/no/such/x\.png: cannot be written"):
        command.main([f"--workdir={tmp_path / 'run'}", "--out=/no/such/x.png"])
    save_run(tmp_path / "plain", tiny_config(tmp_path, model__mlp_activation="gelu"), {4: 1.0})
    with pytest.raises(UserError, match=r"model\.mlp_activation: is gelu; there are no sine activations"):
        command.main([f"--workdir={tmp_path / 'plain'}"])
