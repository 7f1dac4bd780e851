"""Sudoku puzzles: rules, solver and rating, symmetries, generator, files and batches."""
