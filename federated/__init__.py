"""Training across sites without moving their images: FedAvg with its relatives, and DSL."""
