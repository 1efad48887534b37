"""Serving: what a server needs of the runtime, whichever server it is."""
