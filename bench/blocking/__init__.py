"""``python -m bench blocking``: blocking time, cost of a suspension, throughput tax."""
