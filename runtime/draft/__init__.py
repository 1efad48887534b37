"""Proposers."""
