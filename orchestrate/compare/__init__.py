"""Two result files held against each other: result (read) -> comparison -> condition, report."""
