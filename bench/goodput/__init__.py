"""``goodput``: the highest rate at which a system meets enough objectives, by bisection."""
