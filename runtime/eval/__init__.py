"""Bundles in the lm-evaluation-harness."""
