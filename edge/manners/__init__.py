"""HTTP manners: negotiation, metadata, origins, cookies."""
