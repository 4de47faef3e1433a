"""Reading images, bundled photographs, and synthetic degradations."""
