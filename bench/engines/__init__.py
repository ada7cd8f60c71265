"""Engines under test: how each is launched, asked and read. One file each."""
