"""Latency, measured: case -> measure (warm-up, interleaved rounds) -> roofline -> report."""
