"""Sudoku puzzles: rules, solver and ratings, symmetries, generator, files and batches."""
