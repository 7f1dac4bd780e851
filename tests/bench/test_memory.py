"""The measurement of memory by compilation."""

import dataclasses

import pytest

from psann_jax.bench import memory
from psann_jax.config import Config, ConfigError, PuzzlesConfig, SudokuConfig, TrainConfig

TINY = Config(
    model=SudokuConfig(d_model=16, n_layers=2, n_heads=2, d_mlp=16, iterations=6),
    data=PuzzlesConfig(),
    train=TrainConfig(batch_tokens=81 * 4, precision="fp32"),
)


@pytest.mark.slow
def test_rematerialisation_and_small_batches_need_less():
    result = memory.measure(TINY, [4, 8], ["none", "nested"])
    found = {(case["batch_size"], case["remat"]): case["temp_gib"] for case in result["cases"]}
    assert found[4, "nested"] < found[4, "none"] < found[8, "none"]
    assert found[8, "nested"] < found[8, "none"] / 1.5
    assert result["temp_gib"] == found[4, "none"]
    lines = memory.report(result).splitlines()
    assert len(lines) == 6
    assert lines[2].split()[:2] == ["4", "none"]


def test_a_remat_of_another_base_is_rejected():
    with pytest.raises(ConfigError, match=r"train\.remat: is 'dots'"):
        memory.measure(TINY, [4], ["dots"])
    with pytest.raises(ConfigError, match=r"^train\.batch_tokens: "):
        memory.measure(dataclasses.replace(TINY, train=dataclasses.replace(TINY.train, grad_accum=3)), [4], ["none"])
