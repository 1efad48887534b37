"""The report of a bench: tables, plots, and a page."""
