"""Systems under test: engines, how they are started, stopped, asked and read."""
