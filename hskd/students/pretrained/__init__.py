"""Students from a pretrained encoder: a checkpoint, given a head."""
