"""Eight forced CPU devices: gravity attention by the kernel gives the values and gradients of one device."""

import pytest

from tests.support.processes import run_script


@pytest.mark.slow
def test_the_kernel_on_a_mesh_equals_the_reference():
    """Also the gradients of gamma, bias and radius, which devices share, and the dropped weights."""
    run_script("multi_device/gravity_kernel.py", devices=8)
