"""``ablation``: the same requests replayed on FlowPrefill with one setting changed at a time."""
