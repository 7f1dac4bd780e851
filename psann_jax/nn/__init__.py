"""Layers, one idea per file. They take sizes and options, not whole configs, and know nothing of training."""
