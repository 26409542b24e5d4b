"""Services of gRPC itself: health, reflection, and the answer to unknown methods."""
