"""Where the contracts are spoken: messages in, messages out."""
