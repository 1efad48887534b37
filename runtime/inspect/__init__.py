"""What is in a bundle, an engine and a plan."""
