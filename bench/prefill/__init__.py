"""``python -m bench prefill``: time to first token by length, systems side by side."""
