"""Search for the cheapest spec that is enough. It chooses what to run next; fresh seeds test its claims."""
