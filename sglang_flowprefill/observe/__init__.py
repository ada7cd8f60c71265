"""Who watches the loop: statistics, metrics, logs, live state, timeline. They never decide."""
