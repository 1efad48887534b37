"""A model: its checkpoint, its architecture, its tokenizer."""
