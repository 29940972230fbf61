"""copula."""
