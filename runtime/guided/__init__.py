"""Answers of a form that was asked for: JSON, a schema, a regular expression, a grammar."""
