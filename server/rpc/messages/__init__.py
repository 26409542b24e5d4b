"""What messages of several services have in common: masks, pages, moments."""
