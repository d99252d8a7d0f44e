"""Language models: thin linen modules behind pure functions on nested dictionaries."""
