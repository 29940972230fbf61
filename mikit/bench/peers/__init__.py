"""Other libraries in the benchmarks, in this interpreter and in others."""
