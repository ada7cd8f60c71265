"""Replays: open loop, one row for each request, and the metrics of the rows."""
