"""Shared fixtures. Tests run on the CPU backend, with silent broadcasting across ranks forbidden."""

import os

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["HF_DATASETS_OFFLINE"] = os.environ["HF_HUB_OFFLINE"] = "1"

import jax
import pytest


@pytest.fixture
def x64():
    """Double precision for one test."""
    with jax.enable_x64(True):
        yield
