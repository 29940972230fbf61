"""mimkd."""
