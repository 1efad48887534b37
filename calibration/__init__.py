"""What the activations look like, and what to do about it."""
