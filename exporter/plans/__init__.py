"""Plans for GPUs: built, checked, and built again."""
