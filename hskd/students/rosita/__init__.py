"""ROSITA students: a fine-tuned BERT, pruned by Taylor importance."""
