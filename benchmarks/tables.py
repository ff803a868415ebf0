"""What stands in the cells of the benchmarks' tables."""

import statistics


def spread(values: list[float], digits: int = 2) -> str:
    """Median, lowest and highest."""
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"
