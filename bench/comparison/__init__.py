"""``compare`` and ``replay``: the same requests against systems in turn, or one that runs."""
