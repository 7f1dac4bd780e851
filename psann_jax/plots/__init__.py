"""Pictures of trained networks."""
