"""Errors, files and other things that know nothing of the rest."""
