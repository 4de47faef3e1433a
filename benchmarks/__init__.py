"""Benchmarks against peers, the codegen table, and the one-command GPU report."""
