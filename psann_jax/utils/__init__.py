"""Errors, files and other helpers that are independent of the rest of the package."""
