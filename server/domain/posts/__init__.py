"""What members write, and the categories that it stands in."""
