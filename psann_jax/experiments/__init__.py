"""Sweeps: definitions, runs, statistics and reports."""
