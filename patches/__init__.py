"""Patch sets for installed SGLang releases, one folder each, and their register. Data only."""
