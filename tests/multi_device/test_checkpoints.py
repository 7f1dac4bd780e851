"""Checkpoints across devices and processes, and a process killed while writing."""

import os
import signal
import socket
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np

from tests.support.checkpointing import METADATA, abstract, assert_bit_equal, make_state, open_checkpoints, run_python

KILLED = """
import os, signal, sys
import jax
from psann_jax.config import CheckpointConfig
from psann_jax.train.checkpoints import Checkpoints
state = {"params": {"w": jax.random.normal(jax.random.key(0), (4000, 4000))}, "step": 2}
checkpoints = Checkpoints(sys.argv[1], CheckpointConfig(keep=1))
checkpoints.save(9, state, metadata={"config": {}})
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_killed_while_writing(tmp_path):
    saved = tmp_path / "ck"
    with open_checkpoints(saved) as checkpoints:
        checkpoints.save(7, make_state(7), metadata=METADATA, final=True)
    assert run_python(KILLED, saved).returncode == -signal.SIGKILL
    assert any("tmp" in name for name in os.listdir(saved))  # the save was in progress
    with open_checkpoints(saved) as checkpoints:
        assert checkpoints.steps() == [7]
        assert_bit_equal(checkpoints.restore(7, abstract(make_state(7))), make_state(7))
        checkpoints.save(8, make_state(8), metadata=METADATA, final=True)
        assert checkpoints.steps() == [7, 8]
    assert sorted(os.listdir(saved)) == ["index.json", "step_7", "step_8"]


EIGHT_DEVICES = """
import sys
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from psann_jax.config import CheckpointConfig
from psann_jax.train.checkpoints import Checkpoints

mesh = jax.make_mesh((4, 2), ("fsdp", "tensor"), axis_types=(AxisType.Auto,) * 2)
specs = {"params": {"w": P("fsdp", "tensor"), "b": P("tensor")}, "step": P()}
shapes = {"params": {"w": ((8, 6), jnp.float32), "b": ((6,), jnp.bfloat16)}, "step": ((), jnp.int32)}
abstract = jax.tree.map(
    lambda s, p: jax.ShapeDtypeStruct(*s, sharding=NamedSharding(mesh, p)), shapes, specs,
    is_leaf=lambda x: isinstance(x, tuple),
)
with Checkpoints(sys.argv[1], CheckpointConfig()) as checkpoints:
    state = checkpoints.restore(1, abstract)
    jax.tree.map(lambda x, a: np.testing.assert_equal(x.sharding, a.sharding), state, abstract)
    w = state["params"]["w"]
    assert [s.data.shape for s in w.addressable_shards] == [(2, 3)] * 8
    np.testing.assert_array_equal(w, np.arange(48.0).reshape(8, 6))
    np.testing.assert_array_equal(state["params"]["b"], np.arange(6))
    checkpoints.save(2, jax.jit(lambda s: jax.tree.map(lambda x: x + 1, s), donate_argnums=0)(state), metadata={})
print("devices", jax.device_count())
"""


def test_one_device_to_eight_and_back(tmp_path):
    state = {
        "params": {"w": jnp.arange(48.0).reshape(8, 6), "b": jnp.arange(6, dtype=jnp.bfloat16)},
        "step": jnp.int32(1),
    }
    with open_checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state, metadata=METADATA)
    result = run_python(EIGHT_DEVICES, tmp_path, devices=8)
    assert result.stdout == "devices 8\n", result.stderr
    restored = open_checkpoints(tmp_path).restore(2, abstract(state))
    assert_bit_equal(restored, jax.tree.map(lambda x: x + 1, state))


TWO_PROCESSES = """
import sys
import jax, jax.numpy as jnp, numpy as np
jax.distributed.initialize(f"localhost:{sys.argv[2]}", 2, int(sys.argv[3]))
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from psann_jax.config import CheckpointConfig
from psann_jax.train.checkpoints import Checkpoints

mesh = jax.make_mesh((4,), ("fsdp",), axis_types=(AxisType.Auto,))
shardings = {"params": {"w": NamedSharding(mesh, P("fsdp"))}, "step": NamedSharding(mesh, P())}
make = lambda: {"params": {"w": jnp.arange(32.0).reshape(8, 4)}, "step": jnp.int32(0)}
state = jax.jit(make, out_shardings=shardings)()
abstract = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), state, shardings)
bump = jax.jit(lambda s: jax.tree.map(lambda x: x + 1, s), donate_argnums=0)
with Checkpoints(sys.argv[1], CheckpointConfig(keep=1)) as checkpoints:
    for step in range(3):
        checkpoints.save(step, state, metadata={}, tokenizer=b"abc", metrics={"val_loss": float(step)})
        state = bump(state)
    checkpoints.save(2, state, metadata={}, final=True)
    restored = checkpoints.restore(2, abstract)
    for shard in restored["params"]["w"].addressable_shards:
        np.testing.assert_array_equal(shard.data, (np.arange(32.0).reshape(8, 4) + 2)[shard.index])
    print(checkpoints.steps(), checkpoints.best(), checkpoints.tokenizer(2), restored["step"])
"""


def test_two_processes_write_one_checkpoint(tmp_path):
    with socket.socket() as s:
        s.bind(("localhost", 0))
        port = s.getsockname()[1]
    with ThreadPoolExecutor() as pool:
        results = list(pool.map(lambda i: run_python(TWO_PROCESSES, tmp_path, port, i, devices=2), range(2)))
    for result in results:
        assert result.stdout.splitlines()[-1] == "[0, 2] 0 b'abc' 2", result.stderr
    restored = open_checkpoints(tmp_path).restore(2, abstract({"params": {"w": jnp.zeros((8, 4))}}))
    np.testing.assert_array_equal(restored["params"]["w"], np.arange(32.0).reshape(8, 4) + 2)
