"""Text from a trained network: the choice of a token, the compiled loop around it, and the text that comes out."""
