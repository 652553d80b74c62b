"""Sweeps: a matrix of cases from one YAML file, each measured in its own process.

spec -> plan -> run (-> case, one process each) -> store (JSON lines) -> report (Markdown).
"""
