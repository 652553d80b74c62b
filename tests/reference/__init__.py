"""Oracles: what the C++ side must compute, written from docs/numerics.md and docs/formats.md."""
