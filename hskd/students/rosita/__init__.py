"""ROSITA students: a fine-tuned encoder, pruned by Taylor importance."""
