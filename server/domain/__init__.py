"""Rules and entities; knows neither transport nor store."""
