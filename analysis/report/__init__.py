"""Pages for readers: reports, search results, recommendations and timing tables."""
