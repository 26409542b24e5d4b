"""Identity providers over HTTP: discovery, keys and tokens (OpenID Connect)."""
