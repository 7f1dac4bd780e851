"""Fast paths: pure functions on arrays, each beside its plain reference."""
