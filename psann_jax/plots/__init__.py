"""Figures of runs and trained networks, and the style shared by all figures (`style`)."""
