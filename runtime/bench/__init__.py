"""Measuring chains against each other, and telling what came out."""
