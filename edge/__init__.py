"""Any gRPC service as REST, by its own google.api.http annotations."""
