"""Parts of messages that several services share: field masks, pages, timestamps."""
