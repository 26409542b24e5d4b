"""Message types read from descriptors: fields, JSON errors and JSON Schema."""
