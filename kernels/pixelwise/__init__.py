"""What operators share that touch each pixel of ``[B, 3, H, W]`` images once: checks, addresses, noise by Philox."""
