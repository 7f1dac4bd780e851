"""Trained weights in and out: safetensors files, runs, and the checkpoints of psannlm."""
