"""What a fleet takes for so many POSTs a minute: a model, and the costs that it needs."""
