"""Measurements of speed, memory and layout."""
