"""HTTP's own manners: headers, negotiation, cookies and streams."""
