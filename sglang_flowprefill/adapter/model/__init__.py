"""All that is put on a loaded model."""
