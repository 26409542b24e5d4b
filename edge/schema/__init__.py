"""What message types look like: their fields, their faults, their OpenAPI."""
