"""Hooks and routes of the process that speaks HTTP."""
