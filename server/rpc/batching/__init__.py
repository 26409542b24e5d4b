"""Many unary calls over one stream (batching.proto): the server side."""
