"""The rules of posts and their categories."""
