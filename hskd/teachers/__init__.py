"""Teachers: loading, fine-tuning, and the forward pass that gives up their knowledge."""
