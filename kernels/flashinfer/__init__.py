"""Prefill attention through FlashInfer's wrappers. Imports no FlashInfer: it is handed in."""
