"""The demonstration device: one function that uses each of the seven services."""
