"""The cheapest spec that is enough, by a search that chooses what to run next and claims only what fresh seeds show."""
