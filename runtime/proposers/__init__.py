"""What proposes tokens without an engine."""
