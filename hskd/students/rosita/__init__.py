"""ROSITA students: fine-tuned encoders, pruned by Taylor importance."""
