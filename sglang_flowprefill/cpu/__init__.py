"""The CPU engine: what SGLang lacks on a machine without a GPU, and a model to serve there."""
