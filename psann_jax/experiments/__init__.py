"""Comparisons: sweeps, their statistics and reports."""
