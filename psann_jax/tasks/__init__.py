"""What the training loop is given: a model, a loss, batches, an evaluation."""
