"""Fused and tiled array functions with custom gradients, each next to a plain reference."""
