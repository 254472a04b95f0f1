"""The on-disk format of a store: arrays, shards and the manifest."""
