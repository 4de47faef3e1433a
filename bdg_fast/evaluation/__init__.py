"""How well a representation tells degradations apart, and pictures of it."""
