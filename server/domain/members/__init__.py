"""What members say of themselves, whom they follow, and how they take part."""
