"""Bundles on a Ray cluster: rows of datasets, and the HTTP server."""
