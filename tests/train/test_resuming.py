"""Whether a run may continue, or several processes train together."""

from types import SimpleNamespace

import pytest

from psann_jax.train.resuming import check_same_data
from psann_jax.utils.errors import UserError


def test_processes_with_different_data_are_refused():
    task = SimpleNamespace(fingerprint=lambda: "2-abc")
    check_same_data(task, "2-abc")
    with pytest.raises(UserError, match=r"^data.sources: this process has other data, or another tokenizer"):
        check_same_data(task, "2-abd")
