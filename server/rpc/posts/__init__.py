"""PostService: posts and categories."""
