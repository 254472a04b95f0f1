"""Teachers: loading, fine-tuning, and the forward pass that extracts their hidden-state knowledge."""
