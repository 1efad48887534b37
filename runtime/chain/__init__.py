"""Chains: proposers and verifiers, and how far to draft."""
