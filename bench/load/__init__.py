"""``load``: attainment of every class from light load to overload, as shares of capacity."""
