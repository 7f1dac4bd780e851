"""Logical axes become mesh axes, and what cannot be divided is refused."""

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from psann_jax.config import ConfigError
from psann_jax.models import network as registry
from psann_jax.nn.partition import MESH_AXES, RULES, ShardingRules, param_shardings
from psann_jax.train.mesh import check_heads, check_window
from tests.support.variants import VARIANTS, variant


def test_rules_map_axes_and_refuse_a_mesh_axis_used_twice():
    assert RULES.spec(("layers", "embed", "mlp")) == PartitionSpec(None, "fsdp", "tensor")
    assert RULES.spec(("batch", None)) == PartitionSpec(("data", "fsdp"), None)
    with pytest.raises(ConfigError, match="uses a mesh axis twice"):
        ShardingRules(mlp="fsdp").spec(("embed", "mlp"))


@pytest.mark.parametrize("name", VARIANTS)
def test_every_parameter_has_axes_that_fit_its_shape_and_some_are_divided(name):
    network = registry.build(variant(name))
    assert jax.tree.structure(network.infos) == jax.tree.structure(network.abstract)
    jax.tree.map(
        lambda a, info: len(a.shape) == len(info.axes) or pytest.fail(str(info)), network.abstract, network.infos
    )
    divided = [set(RULES.spec(info.axes)) - {None} for info in jax.tree.leaves(network.infos)]
    assert {"fsdp"} in divided or name == "modern"  # which has matrices and undivided vectors only
    assert {"fsdp", "tensor"} in divided


def abstract_mesh(data, fsdp, tensor, context=1):
    sizes = (data, fsdp, context, tensor)
    return jax.sharding.AbstractMesh(sizes, MESH_AXES, axis_types=(AxisType.Auto,) * 4)


def test_a_dimension_that_cannot_be_divided_is_named():
    network = registry.build(variant("respsann", d_mlp=25))
    with pytest.raises(ConfigError, match=r"^mesh\.tensor: is 2, which does not divide mlp=25 of blocks\.mlp\."):
        param_shardings(abstract_mesh(1, 1, 2), network.abstract, network.infos)
    with pytest.raises(ConfigError, match=r"mesh\.tensor: is 2, which does not divide model\.n_heads=3"):
        check_heads(abstract_mesh(1, 1, 2), 3)
    with pytest.raises(ConfigError, match=r"mesh\.tensor: is 2, which does not divide model\.n_kv_heads=1"):
        check_heads(abstract_mesh(1, 1, 2), 4, 1)


@pytest.mark.parametrize(
    ("vocab_size", "embed", "head"),
    [
        (32, PartitionSpec("tensor", "fsdp"), PartitionSpec("fsdp", "tensor")),
        (31, PartitionSpec(None, ("fsdp", "tensor")), PartitionSpec(("fsdp", "tensor"), None)),
    ],
)
def test_a_vocabulary_that_cannot_be_divided_keeps_its_size_and_is_held_in_parts(vocab_size, embed, head):
    network = registry.build(variant("respsann", vocab_size=vocab_size))
    shardings = param_shardings(abstract_mesh(1, 2, 4), network.abstract, network.infos)
    assert network.abstract["embed"].shape == (vocab_size, 16)
    assert (shardings["embed"].spec, shardings["head"].spec) == (embed, head)


def test_features_that_cannot_be_divided_beside_such_a_vocabulary_are_named():
    network = registry.build(variant("respsann", vocab_size=31, d_model=24))
    with pytest.raises(ConfigError, match=r"^mesh\.fsdp \* mesh\.tensor: is 16, which does not divide embed=24 of"):
        param_shardings(abstract_mesh(1, 4, 4), network.abstract, network.infos)


def test_windows_that_cannot_be_split_are_refused():
    check_window(abstract_mesh(1, 1, 4), 32, sequence=True)
    check_window(abstract_mesh(1, 1, 4), 30, sequence=False)
    check_window(abstract_mesh(1, 1, 4, 3), 30, sequence=False)
    with pytest.raises(ConfigError, match=r"^data\.max_length: is 30, which mesh\.tensor=4 does not divide;"):
        check_window(abstract_mesh(1, 1, 4), 30, sequence=True)
    with pytest.raises(ConfigError, match=r"^mesh\.sequence: has no effect where mesh\.tensor is 1"):
        check_window(abstract_mesh(4, 2, 1), 32, sequence=True)
    with pytest.raises(ConfigError, match=r"^data\.max_length: is 30, which mesh\.context=4 does not divide$"):
        check_window(abstract_mesh(1, 1, 1, 4), 30, sequence=False)


def test_initial_weights_follow_the_table():
    network = registry.build(variant("waveresnet_interleave", d_model=64, d_mlp=96, vocab_size=500))
    params = jax.jit(network.init)(jax.random.key(0))
    blocks = params["blocks"]
    assert abs(np.std(params["embed"]) - 0.02) < 1e-3
    for kernel, fan in (
        (blocks["attn"]["q"]["kernel"], 128),
        (blocks["mlp"]["fc1"]["kernel"], 160),
        (params["head"], 564),
    ):
        bound = np.sqrt(6 / fan)
        assert np.abs(kernel).max() <= bound
        assert abs(np.std(kernel) - bound / np.sqrt(3)) < 0.03 * bound
    assert not np.array_equal(*blocks["attn"]["q"]["kernel"])  # layers start different
    np.testing.assert_array_equal(blocks["mlp"]["fc1"]["bias"], 0)
    np.testing.assert_array_equal(blocks["alpha"], 1)
    assert np.abs(blocks["wave"]["conv"]).max() <= 3**-0.5
