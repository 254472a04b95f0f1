"""The store: the teacher's selected hidden-state knowledge and logits on disk, addressed by example id."""
