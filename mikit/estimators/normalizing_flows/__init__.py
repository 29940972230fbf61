"""normalizing_flows."""
