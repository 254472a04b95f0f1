"""Students made from the checkpoint of a pretrained encoder and a new head."""
