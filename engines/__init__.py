"""What an engine is, and the backends that run one."""
