"""Questions asked of a simulated deployment: runs, maximum rates, sizes, comparisons, errors."""
