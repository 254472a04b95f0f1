"""What a store looks like on disk: arrays, shards, manifest."""
