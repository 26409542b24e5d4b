"""The `academy` commands: the only package that imports both server and edge."""
