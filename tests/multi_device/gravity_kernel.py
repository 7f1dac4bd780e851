"""Compares gravity attention by the kernel on 8 devices with the plain reference, values and gradients."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from psann_jax.config import MeshConfig
from psann_jax.nn import gravity
from psann_jax.nn.mesh import make_mesh
from psann_jax.ops import kernels
from psann_jax.ops.dropout import row_words
from psann_jax.ops.gravity_kernel import kernel_target, weighted_values
from psann_jax.ops.gravity_scores import GravityForm, GravityInputs, GravityParams
from tests.ops.test_gravity_attention import draw, packed

FORM = GravityForm(cutoff="soft", dropout_rate=0.2)
FEATURES, ROW = P(("data", "fsdp"), None, "tensor", None), P(("data", "fsdp"), None)
AXES = (FEATURES, FEATURES, P("tensor"), P("tensor"), P(), ROW)


def value_and_gradients(attend, segment_ids, key, *floats):
    """Returns the output and the gradients of all arrays for a fixed gradient of the output."""

    def run(a, v, gamma, bias, radius, mass):
        return attend(GravityInputs(a, v, GravityParams(gamma, bias, radius), mass, segment_ids, key))

    out, vjp = jax.vjp(run, *floats)
    return out, *vjp(jnp.cos(jnp.arange(out.size, dtype=out.dtype)).reshape(out.shape))


def main():
    """Prints the largest difference of each array, as a fraction of its largest value."""
    kernels.platform, kernels.device_kind = lambda: "gpu", lambda: "NVIDIA H100 80GB HBM3"
    gravity.kernel_target = partial(kernel_target, interpret=True)
    key, B, H = jax.random.key(3), 8, 4
    floats = list(draw(B=B, L=40, H=H, K=8, dtype="float32").values())
    segment_ids = jnp.tile(packed(40), (B // 2, 1))
    words = row_words(key, (B, H))
    want = value_and_gradients(lambda x: weighted_values(FORM, x, words), segment_ids, key, *floats)
    for sizes in ((8, 1, 1), (2, 2, 2)):
        mesh = make_mesh(MeshConfig(*sizes), all_devices=False)
        on_mesh = [jax.device_put(x, NamedSharding(mesh, axes)) for x, axes in zip(floats, AXES, strict=True)]
        with jax.set_mesh(mesh), kernels.recorded() as found:
            got = jax.jit(partial(value_and_gradients, lambda x: gravity.attend(FORM, x, "auto")))(
                jax.device_put(segment_ids, NamedSharding(mesh, ROW)), key, *on_mesh
            )
        assert found == {"gravity": {"pallas"}}, found
        assert "tensor" in got[0].sharding.spec or sizes[2] == 1, got[0].sharding
        for y, z in zip(got, want, strict=True):
            np.testing.assert_allclose(y, z, rtol=0, atol=1e-4 * max(np.abs(z).max(), 0.1))


if __name__ == "__main__":
    main()
