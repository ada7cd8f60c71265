"""The event loop, its one table of what is in flight, and the engine it speaks to."""
