"""What ``python -m sglang_flowprefill`` offers beside the server, one module a command."""
