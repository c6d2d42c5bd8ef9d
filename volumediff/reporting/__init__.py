"""Pages and pictures of results that open from disk."""
