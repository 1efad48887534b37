"""The bundle: a folder of engines, what describes it, and how it is written whole."""
