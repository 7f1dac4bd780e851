"""Measurements: throughput, memory, comparisons and their reports."""
