"""HTTP semantics: headers, negotiation, entity tags, cookies and streams."""
