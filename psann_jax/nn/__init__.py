"""Layers, one idea a file; they know nothing of training."""
