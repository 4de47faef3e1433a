"""Fast operators, each with an eager PyTorch reference that specifies it."""
